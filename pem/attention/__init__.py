"""The two ways a query can look at the image: PEM's prototypes, and what Mask2Former does."""

from pem.attention.masked import MaskedCrossAttention
from pem.attention.prototype import PrototypeCrossAttention

__all__ = ["MaskedCrossAttention", "PrototypeCrossAttention"]
