"""GPT-2: linear layers are Conv1D, stored (in, out)."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("gpt2")(
    Architecture(
        name="gpt2",
        model_types=("gpt2",),
        embedding="transformer.wte",
        block="transformer.h.{}",
        attention="transformer.h.{}.attn",
        mlp="transformer.h.{}.mlp",
        mlp_out="transformer.h.{}.mlp.c_proj",
        final_norm="transformer.ln_f",
    )
)
