"""GPT-NeoX and Pythia: attention and MLP in parallel."""

from editkit.arch import ARCHITECTURES, Architecture

ARCHITECTURES.register("gpt_neox")(
    Architecture(
        name="gpt_neox",
        model_types=("gpt_neox",),
        embedding="gpt_neox.embed_in",
        block="gpt_neox.layers.{}",
        attention="gpt_neox.layers.{}.attention",
        mlp="gpt_neox.layers.{}.mlp",
        mlp_out="gpt_neox.layers.{}.mlp.dense_4h_to_h",
        final_norm="gpt_neox.final_layer_norm",
    )
)
