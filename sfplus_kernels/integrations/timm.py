"""timm: the optimizers in its registry, for ``create_optimizer_v2`` and the train script's ``--opt``."""

from __future__ import annotations

from sfplus_kernels import optim

FAMILY = {
    "AdamCScheduleFreePlus": {"has_betas": True},
    "AdamWScheduleFree": {"has_betas": True},
    "AdamWScheduleFreePaper": {"has_betas": True},
    "RAdamScheduleFree": {"has_betas": True},
    "SGDScheduleFree": {"has_eps": False, "has_momentum": True},
}


def register() -> None:
    """Register the optimizers under their names in lower case, such as ``adamcschedulefreeplus``.

    timm takes of a name what comes after the last underscore, so these have none. The train script needs
    three changes more: see docs/integrations.md.
    """
    from timm.optim import OptimInfo
    from timm.optim._optim_factory import default_registry

    for name, arguments in FAMILY.items():
        default_registry.register(
            OptimInfo(name=name.lower(), opt_class=getattr(optim, name), **arguments)
        )
