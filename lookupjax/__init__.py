"""lookupjax: vision transformers and efficient attention in JAX, around LookupViT."""

from lookupjax.models import create_model, list_models

__all__ = ["create_model", "list_models", "__version__"]
__version__ = "0.1.0"
