"""Llama and all that are laid out like it: Mistral, Qwen 2, 2.5 and 3, SmolLM 2 and 3, OLMo, StableLM."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("llama")(
    Architecture(
        name="llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo", "stablelm"),
        embedding="model.embed_tokens",
        block="model.layers.{}",
        attention="model.layers.{}.self_attn",
        mlp="model.layers.{}.mlp",
        mlp_out="model.layers.{}.mlp.down_proj",
        final_norm="model.norm",
    )
)
