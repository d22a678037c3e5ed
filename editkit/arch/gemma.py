"""Gemma 1: Llama's places, no norm behind the MLP."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("gemma")(
    Architecture(
        name="gemma",
        model_types=("gemma",),
        embedding="model.embed_tokens",
        block="model.layers.{}",
        attention="model.layers.{}.self_attn",
        mlp="model.layers.{}.mlp",
        mlp_out="model.layers.{}.mlp.down_proj",
        final_norm="model.norm",
    )
)
