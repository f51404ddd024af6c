"""Networks: flax.nnx modules called as `network(x, t, cond=None, end=None)`, with times t in [0, 1]."""

from flowjax.models import lora
from flowjax.models.attention import require_jvp
from flowjax.models.autoencoder import Autoencoder
from flowjax.models.conditioned import Conditioned, ImageEncoder, LabelEncoder, VectorEncoder
from flowjax.models.discriminator import Discriminator
from flowjax.models.dit import DiT
from flowjax.models.mlp import MLP
from flowjax.models.text import TextEncoder, Words
from flowjax.models.unet import UNet
