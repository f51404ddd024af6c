"""Networks, encoders of conditions and adapters: flax.nnx modules.

A network is called as `network(x, t, cond=None, end=None, key=None)`, with times t in [0, 1] and, for dropout, one key
per example; autoencoders, `Discriminator` and `ViT` take images alone, `ViTDecoder` tokens.
"""

from flowjax.models import lora
from flowjax.models.attention import require_jvp
from flowjax.models.autoencoder import Autoencoder
from flowjax.models.conditioned import Conditioned, ImageEncoder, LabelEncoder, VectorEncoder
from flowjax.models.discriminator import Discriminator
from flowjax.models.dit import DiT
from flowjax.models.dit_dh import DiTDH
from flowjax.models.kl_autoencoder import KLAutoencoder
from flowjax.models.mlp import MLP
from flowjax.models.readout import Readout
from flowjax.models.representation import RepresentationAutoencoder, ViTDecoder
from flowjax.models.text import TextEncoder, Words
from flowjax.models.token_dit import TokenDiT
from flowjax.models.unet import UNet
from flowjax.models.vit import ViT
