"""GPT-J: attention and MLP in parallel, biased unembedding."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("gptj")(
    Architecture(
        name="gptj",
        model_types=("gptj",),
        embedding="transformer.wte",
        block="transformer.h.{}",
        attention="transformer.h.{}.attn",
        mlp="transformer.h.{}.mlp",
        mlp_out="transformer.h.{}.mlp.fc_out",
        final_norm="transformer.ln_f",
    )
)
