"""Gemma 2 and the text models of Gemma 3: a norm stands behind the MLP too (sandwich norms)."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("gemma2")(
    Architecture(
        name="gemma2",
        model_types=("gemma2", "gemma3_text"),
        embedding="model.embed_tokens",
        block="model.layers.{}",
        attention="model.layers.{}.self_attn",
        mlp="model.layers.{}.mlp",
        mlp_out="model.layers.{}.mlp.down_proj",
        final_norm="model.norm",
        mlp_norm="model.layers.{}.post_feedforward_layernorm",
    )
)
