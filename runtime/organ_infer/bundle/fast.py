"""The fast member of a bundle: the best single one of the networks that the bundle averages, used alone."""

from dataclasses import replace

from ..errors import BundleError
from .files import UnverifiedBundle

__all__ = ["fast_bundle"]


def fast_bundle(bundle: UnverifiedBundle) -> UnverifiedBundle:
    """Reduce a bundle to its fast member.

    The other networks are then neither read nor opened. The manifest has the member's own temperature, plausibility and
    metrics, and its name says which member is used.

    Args:
        bundle: The listed bundle.

    Returns:
        The bundle of this member, with the SHA-256 of the whole manifest. A bundle of one network is returned as it is.

    Raises:
        BundleError: The bundle averages several networks, and its manifest names no fast one.
    """
    manifest = bundle.manifest
    if len(manifest.members) == 1:
        return bundle
    if manifest.fast is None:
        raise BundleError(
            f"{bundle.directory}: averages {len(manifest.members)} networks, and names none of them for --fast or"
            " fast=True; export the bundle again with python -m export.all, or leave the option out"
        )
    fast = manifest.fast
    only = replace(
        manifest,
        name=f"{manifest.name} (only {fast.stage})",
        members=tuple(member for member in manifest.members if member.stage == fast.stage),
        temperature=fast.temperature,
        plausibility=fast.plausibility,
        metrics=fast.metrics,
        fast=None,
    )
    return replace(bundle, manifest=only, only=fast.stage)
