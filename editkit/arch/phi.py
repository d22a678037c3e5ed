"""Phi 1 to 2: attention and MLP in parallel, biased unembedding."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("phi")(
    Architecture(
        name="phi",
        model_types=("phi",),
        embedding="model.embed_tokens",
        block="model.layers.{}",
        attention="model.layers.{}.self_attn",
        mlp="model.layers.{}.mlp",
        mlp_out="model.layers.{}.mlp.fc2",
        final_norm="model.final_layernorm",
    )
)
