"""Audit of segmentations: does what the model sees fit what the mask says, and what explains the difference?"""

from .types import AuditedOrgan, Finding, Picture, ScanAudit

__all__ = ["AuditedOrgan", "Finding", "Picture", "ScanAudit"]
