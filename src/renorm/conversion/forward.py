"""From batch norm to layers of ours, or to whatever a callable makes of it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, overload

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import type_before_parametrizations

from renorm.conversion.classes import OURS, become, counterpart
from renorm.conversion.cross_iteration import to_cross_iteration
from renorm.conversion.options import check_options, refusal
from renorm.conversion.selection import Selection, Site, norm_layers, select
from renorm.distributed import refuse_taken, sync_running
from renorm.errors import ArgumentError
from renorm.nn import BatchRenorm

M = TypeVar("M", bound=nn.Module)

# the paper's, and BatchRenorm's default: batch norm's 0.1 would let the reference, against which
# r and d are taken, jump with every batch
_MOMENTUM = 0.01


@overload
def convert(
    model: M,
    to: Literal["batch_renorm", "cross_iteration"] = ...,
    *,
    include: Selection = ...,
    exclude: Selection = ...,
    example: Any = ...,
    **options: Any,
) -> M: ...
@overload
def convert(
    model: nn.Module,
    to: str | Callable[[_BatchNorm], nn.Module],
    *,
    include: Selection = ...,
    exclude: Selection = ...,
    example: Any = ...,
    **options: Any,
) -> nn.Module: ...
def convert(
    model: nn.Module,
    to: str | Callable[[_BatchNorm], nn.Module] = "batch_renorm",
    *,
    include: Selection = None,
    exclude: Selection = None,
    example: Any = None,
    **options: Any,
) -> nn.Module:
    """Turn the batch norm layers of a model into batch renorm or cross-iteration norm, in place.

    The layers stay the same objects and change their class, so parameters, buffers, hooks,
    ``requires_grad``, flags, device, dtype, sharing, parametrizations, and an optimizer's or a
    wrapper's references all stay. For an unchanged original convert a ``copy.deepcopy``.

    Eval outputs are bitwise the same, which is why ``eps`` is kept. Two things change for
    training: ``momentum`` becomes the paper's 0.01 in batch renorm, because the running statistics
    are now a reference that has to move slowly; and ``num_batches_tracked`` is set to 0, so that
    the ramp of the limits, or the burn-in, starts now and not at a checkpoint's step. (For a
    checkpoint that is loaded later there is ``layer.restart_limits()`` of batch renorm.)

    nn.BatchNorm1d, 2d and 3d, lazy or not, become the batch renorm of their rank; nn.SyncBatchNorm
    becomes ``BatchRenorm``, with ``sync="batch"`` in its process group if ``sync`` is not given;
    timm's BatchNormAct2d becomes ``BatchRenormAct2d``. A subclass that changes no more than
    construction is converted as its base. Layers that are ours already, and other norms, are left
    alone. A layer without running statistics has no reference and stays batch norm in effect.

    With ``to="cross_iteration"`` each layer is paired with its source, the nn.Linear, nn.Conv1d, 2d
    or 3d whose output it normalizes; that gets a forward hook and stays as it is otherwise. With
    an ``example`` the model is run once to see what feeds what; without one, neighbours in an
    nn.Sequential are taken, and children that were registered one after the other. Each training
    forward checks the pair again; ``renorm.summary`` shows it. Neither nn.SyncBatchNorm nor a lazy
    layer is converted.

    Args:
        model: changed in place; may itself be a batch norm layer.
        to: ``"batch_renorm"``, ``"cross_iteration"``, or a callable that makes a replacement of a
            batch norm layer of any class. A replacement takes over training flag, device and
            dtype, and the layer's place in every parent, but not its hooks; the layer is called
            for once, however often it is shared.
        include: the layers to convert: a glob on qualified names (``"layer4.*"``), a class of
            the layer, a predicate ``(name, module) -> bool``, or an iterable of these; None for
            all.
        exclude: the layers to leave as they are, in the same forms.
        example: input of the model for ``to="cross_iteration"``: a tensor, a tuple or list of
            positional arguments, or a dict of keyword arguments; None to go by the order of
            modules. It is run in eval mode, leaves nothing changed, and is not looked at where the
            settings need no source.
        **options: ``momentum`` and the settings of ``BatchRenorm``: ``limits``, ``microbatch``,
            ``single``, ``kernel``, ``sync``, ``process_group``, ``backward``,
            ``backward_momentum``; or those of ``CrossIterationBatchNorm``: ``window``,
            ``burn_in``, ``compensation``, ``sample``, ``follow``, ``limits``, ``history``. With
            ``sync="running"`` ``renorm.distributed.sync_running`` is called on the
            model.

    Returns:
        The model; its replacement if the model itself was a layer and ``to`` a callable.

    Raises:
        ConversionError: layers of unknown behaviour, or without a source that can be found, all
            of them listed; or no layer at all.
        ArgumentError: an unknown or invalid option, or a selection that matches nothing. After
            either error the model is as it was.

    Source: Ioffe 2017 (arXiv 1702.03275), section 3, for momentum and the ramp.

    >>> from renorm.limits import over
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    >>> convert(model, limits=over(1_000))[1].limits(50)
    (1.0, 0.0)
    """
    if to not in ("batch_renorm", "cross_iteration") and not callable(to):
        raise ArgumentError(
            "to is 'batch_renorm', 'cross_iteration' or a callable that makes a module of a layer, "
            f"got {to!r}."
        )
    if example is not None and to != "cross_iteration":
        raise ArgumentError(
            f"example is for to='cross_iteration', which asks what feeds each layer, got to={to!r}."
        )
    targets = _targets(model, include, exclude)
    if callable(to):
        return _replace(model, to, targets, options)
    if to == "cross_iteration":
        to_cross_iteration(model, targets, options, example)
    else:
        _to_batch_renorm(model, targets, options)
    return model


def _to_batch_renorm(model: nn.Module, targets: Sequence[Site], options: dict[str, Any]) -> None:
    check_options(BatchRenorm, options)
    for site in targets:
        BatchRenorm(1, device="meta", **_options_of(site.layer, options))
    if options.get("sync") == "running":
        refuse_taken(model)
        if not any(site.layer.running_mean is not None for site in targets):
            raise ArgumentError(
                f"sync='running' shares running statistics, and none of the {len(targets)} layers "
                "to convert has any. Give sync='batch', or track_running_stats=True to the layers."
            )
    classes = {site: counterpart(site.layer, "batch_renorm") for site in targets}
    refused = {site: why for site, why in classes.items() if isinstance(why, str)}
    if refused:
        raise refusal(refused)
    for site, cls in classes.items():
        assert not isinstance(cls, str)
        _renormalize(site.layer, cls, _options_of(site.layer, options))
    if options.get("sync") == "running":
        sync_running(model, options.get("process_group"))


def _targets(model: nn.Module, include: Selection, exclude: Selection) -> list[Site]:
    chosen = select(norm_layers(model), include, exclude)
    return [site for site in chosen if not isinstance(site.layer, OURS)]


def _renormalize(layer: _BatchNorm, cls: type[_BatchNorm], options: dict[str, Any]) -> None:
    came_from = type_before_parametrizations(layer)
    become(layer, cls)
    assert isinstance(layer, BatchRenorm)
    vars(layer)["_converted_from"] = came_from
    vars(layer).pop("process_group", None)  # of an nn.SyncBatchNorm
    layer.momentum = options.pop("momentum", _MOMENTUM)
    layer.configure(**options)
    layer.restart_limits()


def _options_of(layer: _BatchNorm, options: dict[str, Any]) -> dict[str, Any]:
    """The options for one layer: one that shares its statistics goes on doing so."""
    if not isinstance(layer, nn.SyncBatchNorm) or "sync" in options:
        return dict(options)
    return {"sync": "batch", "process_group": layer.process_group} | options


def _replace(
    model: nn.Module,
    make: Callable[[_BatchNorm], nn.Module],
    targets: Sequence[Site],
    options: dict[str, Any],
) -> nn.Module:
    if options:
        raise ArgumentError(
            f"Options are for to='batch_renorm', got {', '.join(options)} with a callable. Set "
            "them in the callable."
        )
    wanted = {site.layer for site in targets}
    places = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child in wanted
    ]
    made = {site.layer: _make(make, site) for site in targets}
    for parent, key, child in places:
        assert isinstance(child, _BatchNorm)
        parent.add_module(key, made[child])
    return made[model] if isinstance(model, _BatchNorm) and model in made else model


def _make(make: Callable[[_BatchNorm], nn.Module], site: Site) -> nn.Module:
    new = make(site.layer)
    if not isinstance(new, nn.Module):
        raise ArgumentError(f"The callable must return a module, got {new!r} for {site}.")
    state = [*site.layer.parameters(), *site.layer.buffers()]
    like = next((t for t in state if t.is_floating_point()), None)
    if like is not None:
        new.to(like.device, like.dtype)
    return new.train(site.layer.training)
