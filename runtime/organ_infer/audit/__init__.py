"""Audit of segmentations: does what the model sees fit what the mask says, and what explains the difference?"""

from .scan import audit_scan
from .types import KINDS, AuditedOrgan, Finding, Picture, ScanAudit

__all__ = ["KINDS", "AuditedOrgan", "Finding", "Picture", "ScanAudit", "audit_scan"]
