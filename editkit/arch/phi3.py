"""Phi 3 and 4: Llama's places with fused gate and up matrices."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("phi3")(
    Architecture(
        name="phi3",
        model_types=("phi3",),
        embedding="model.embed_tokens",
        block="model.layers.{}",
        attention="model.layers.{}.self_attn",
        mlp="model.layers.{}.mlp",
        mlp_out="model.layers.{}.mlp.down_proj",
        final_norm="model.norm",
    )
)
