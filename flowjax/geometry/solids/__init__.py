"""Solids in two stages: occupancy grids as latents of voxels, and details of the blocks that their surface passes."""

from flowjax.geometry.solids import bodies, meshes, structure
from flowjax.geometry.solids.autoencoder import VoxelAutoencoder
from flowjax.geometry.solids.conditions import Structure
from flowjax.geometry.solids.forms import Form, Solids, Voxels
from flowjax.geometry.solids.sources import camera, of_meshes, solids
from flowjax.geometry.solids.transformer import SolidTransformer, VoxelDiT, VoxelSetDiT

__all__ = [
    "Form",
    "SolidTransformer",
    "Solids",
    "Structure",
    "VoxelAutoencoder",
    "VoxelDiT",
    "VoxelSetDiT",
    "Voxels",
    "bodies",
    "camera",
    "meshes",
    "of_meshes",
    "solids",
    "structure",
]
