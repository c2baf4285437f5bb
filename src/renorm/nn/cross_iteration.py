"""Cross-Iteration Batch Normalization as nn.Modules: subclasses of nn.BatchNorm."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, reduce
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

from renorm import functional, kernels
from renorm.kernels import Call, borrowed, window
from renorm.kernels.algebra import correction
from renorm.kernels.call import accumulation_dtype
from renorm.kernels.cpu import lags as native
from renorm.nn import window_settings
from renorm.nn.batch_norm import BatchNormBase
from renorm.nn.history import Seen
from renorm.nn.inputs import by_running_statistics, check_input
from renorm.nn.meeting import meet, part
from renorm.nn.recomputation import Memory, Reference, in_backward, may_be_repeated
from renorm.nn.sharing import LostToSyncBatchNorm
from renorm.nn.source import Source
from renorm.nn.window_settings import Compensation, Follow, Keeping

Schedule = Callable[[Any], tuple[Any, Any]]
Moments = tuple[Tensor, Tensor]  # mean and biased variance: (C,) each, or (C, L) of the lags


class Used(NamedTuple):
    """What a batch is normalized by."""

    mean: Tensor  # (C,)
    var: Tensor  # (C,)
    share: float | Tensor  # the part that the batch has in them; a number on the cpu


@cache
def _keep_out_of_graphs() -> None:
    """Have the compiler leave out what remembers, since that changes with every iteration.

    Not at import: it needs torch._dynamo, which takes a second.
    """
    for name in ("_look", "_by_window"):
        method: Any = torch.compiler.disable(getattr(CrossIterationBatchNorm, name))
        setattr(CrossIterationBatchNorm, name, method)


def _full_precision(x: Tensor) -> Any:
    """A context without autocast."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _finite(*vectors: Tensor) -> bool | Tensor:
    """Whether all values of these (C,) are finite; of an accelerator the host is not told."""
    finite = reduce(torch.add, vectors).abs().amax().isfinite()
    return bool(finite) if finite.is_cpu else finite


def _in_place(statistics: tuple[Tensor, Tensor], count: Tensor | None, like: Tensor) -> bool:
    """Whether the code in C can move running statistics where they are."""
    return (
        native.usable(like)
        and native.readable(like.dtype, *statistics, like)
        and not statistics[0].is_inference()
        and (count is None or native.readable(torch.int64, count))
    )


class CrossIterationBatchNorm(BatchNormBase):
    """Cross-Iteration Batch Normalization of any rank: (N, C) or (N, C, *spatial).

    In training a batch is normalized by its own statistics and those of the k - 1 iterations
    before it, brought to the weights of now, with eps inside the root::

        mu = 1/k sum mu_i       var = 1/k sum var_i + 1/k sum (mu_i - mu)^2
        y = weight * (x - mu) / sqrt(var + eps) + bias

    The gradient goes through the current iteration alone, which is 1/k of the statistics. The
    layer in front, its *source*, is a linear layer or a convolution, y = W p + b of patches p, and
    with p held the statistics of an earlier iteration at the weights of now follow from what is
    kept of it: the mean from E[p], exactly; the variance as ``compensation`` says. That earlier
    layers have changed too is not seen. ``renorm.convert(model, to="cross_iteration")`` finds the
    sources; a layer that was built is given its own by ``attach``.

    In eval it is nn.BatchNorm, the same operation on the same five state entries, so checkpoints
    load both ways. A batch with statistics that are not finite is not remembered and moves nothing.

    Args:
        num_features: C, the number of channels.
        eps: added to variances inside the root, above 0.
        momentum: update rate of the running statistics, 0 to 1, as in nn.BatchNorm; None for the
            plain average over all iterations so far.
        affine: whether there are weight and bias.
        track_running_stats: if False, window statistics serve in eval too, and are remembered
            there as well.
        device, dtype: of parameters and statistics.
        bias: whether an affine layer has a bias.
        window: k at most, iterations, the current one included; 1 is batch norm. It fills by one
            an iteration.
        burn_in: so many first iterations, by ``num_batches_tracked``, are batch norm, and nothing
            of them is remembered: for the time in which weights change too fast.
        compensation: of the variance of an earlier iteration for the change of the source's own
            weights. ``"first_order"``: by its derivative, sigma being what is expanded.
            ``"exact"``: as it is, where the covariance of patches is affordable, for a fan-in K up
            to 64 or twice the channels of a group, and first order elsewhere; ``renorm.summary``
            says which. ``"none"``: mean and variance are taken as they were; no source is needed.
        sample: have the variance compensated by so many positions of an iteration, which costs a
            fraction; ``"exact"`` is then affordable anywhere. What it was is that of all
            positions, and the change is estimated without bias. None for all positions.
        follow: what the running statistics move towards: those of the ``"window"``, which training
            normalized by, or of the ``"batch"`` alone, as the authors' code has it.
        limits: None, or ``step -> (r_max, d_max)``, see ``renorm.limits``: what was normalized by
            the window is corrected towards the running statistics as in Batch Renormalization.
        history: with ``"save"`` what is remembered is part of the state_dict, in an entry
            ``_extra_state`` beside the five, and a run resumes bit for bit; with ``"drop"`` the
            window fills anew.

    Source: Yao et al. 2020 (arXiv 2002.05712); ``renorm.kernels.borrowed`` says what is other.
    """

    burn_in: int
    follow: Follow
    limits: Schedule | None
    history: Keeping
    frozen: bool
    names: tuple[str, str]  # of the layer and its source in their model, for messages
    _built: tuple[int, Compensation, int | None]  # window, compensation and sample
    _source: tuple[Source] | None  # in a tuple, or it would be a child of the layer
    _seen: Seen | None
    _weights: tuple[int, int] | None  # identity and version of the source's, as last seen
    _step: int | None  # training forwards so far; None where the counter is to be asked
    _ranks: ClassVar[tuple[int, ...]] = ()
    qconfig = LostToSyncBatchNorm(
        "its window would be lost. Each process has a window of its own, and needs no other's"
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        window: int = 8,
        burn_in: int = 0,
        compensation: Compensation = "first_order",
        sample: int | None = None,
        follow: Follow = "window",
        limits: Schedule | None = None,
        history: Keeping = "drop",
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.configure(
            window=window,
            burn_in=burn_in,
            compensation=compensation,
            sample=sample,
            follow=follow,
            limits=limits,
            history=history,
        )

    def configure(
        self,
        *,
        window: int = 8,
        burn_in: int = 0,
        compensation: Compensation = "first_order",
        sample: int | None = None,
        follow: Follow = "window",
        limits: Schedule | None = None,
        history: Keeping = "drop",
    ) -> None:
        """Set everything that this layer has and nn.BatchNorm has not; it has no source then.

        Raises:
            ArgumentError: a setting outside the ranges above.
        """
        _keep_out_of_graphs()
        window_settings.check(window, burn_in, compensation, sample, follow, limits, history)
        functional.check_settings(self.momentum, self.eps, None, "raise")
        if vars(self).get("_source") is not None:
            self.detach()
        self._built = (window, compensation, sample)
        self.burn_in = burn_in
        self.follow = follow
        self.limits = limits
        self.history = history
        self.frozen = False
        self.names = ("", "")
        self._source = None
        self._seen = None
        self._weights = None
        self._step = None
        self._memory = Memory()
        self._history = window_settings.history_for(self, None)

    @property
    def window(self) -> int:
        """k, iterations at most; like the next two it decides what is kept: see ``configure``."""
        return self._built[0]

    @property
    def compensation(self) -> Compensation:
        """How the variance of an earlier iteration is brought to the weights of now."""
        return self._built[1]

    @property
    def sample(self) -> int | None:
        """Positions of an iteration that the compensation is taken from; None for all."""
        return self._built[2]

    @property
    def source(self) -> Source | None:
        """The layer whose output this one normalizes, as it was attached."""
        return None if self._source is None else self._source[0]

    def attach(self, source: Source, names: tuple[str, str] = ("", "")) -> None:
        """Say whose output this layer normalizes; what was remembered is forgotten.

        A forward hook on the source tells this layer of each input; nothing else about it changes.
        That the input of this layer is that very output is checked in each training forward.

        Args:
            source: nn.Linear, or nn.Conv1d, 2d or 3d, with ``num_features`` outputs.
            names: of this layer and the source in their model, for messages.

        Raises:
            ArgumentError: it cannot be a source.
        """
        self.detach()
        self._history = window_settings.history_for(self, source)
        self._source, self.names = (source,), names
        meet(source, self)

    def detach(self) -> None:
        """Forget the source, and what was remembered."""
        if self._source is not None:
            part(self._source[0], self)
        self._source, self._seen = None, None
        self._history = window_settings.history_for(self, None)

    def history_bytes(self) -> int:
        """The memory that the history takes once it has begun; 0 before a source is known."""
        return window_settings.history_bytes(self)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input`` (N, C, *spatial), floating point, C channels in dimension 1."""
        self._check_input_dim(input)
        if self._trains():
            return self._by_window(input)
        return by_running_statistics(self, input)

    def _trains(self) -> bool:
        return self.running_mean is None or (self.training and not self.frozen)

    def _check_input_dim(self, input: Tensor) -> None:
        check_input(self, input, self._ranks)

    def _borrows(self) -> bool:
        """Whether this forward looks at earlier iterations, and is remembered."""
        return self.window > 1 and (self.burn_in == 0 or self._iterations() >= self.burn_in)

    def _iterations(self) -> int:
        count = self.num_batches_tracked
        if count is not None and count.is_cpu:
            return int(count)
        if self._step is None:  # waits for the device, once
            self._step = 0 if count is None else int(count)
        return self._step

    def _meet(self, source: Source, given: Tensor, output: Tensor) -> None:
        """See a forward of the source, while it has its weights."""
        if self._trains() and self.compensation != "none" and self.window > 1:
            self._look(source, given, output)

    def _look(self, source: Source, given: Tensor, output: Tensor) -> None:
        self._seen = None
        if not self._borrows() or not isinstance(given, Tensor) or given.numel() == 0:
            return
        if self._memory and in_backward():
            return  # repeated by checkpointing, and to be normalized as it was
        g = self._history.geometry
        if g is not None and given.dim() != 2 + len(g.kernel):
            return  # one example alone, or sequences: not (N, C, *spatial)
        window_settings.check_whole(self)
        window_settings.check_source(self, source)
        with torch.no_grad(), _full_precision(given):
            self._seen = self._told(source, given.detach(), output)

    def _told(self, source: Source, given: Tensor, output: Tensor) -> Seen:
        history, g = self._history, self._history.geometry
        assert g is not None
        dtype = accumulation_dtype(output.dtype)
        history.prepare(output.device, dtype)
        W = source.weight.detach().to(dtype).reshape(g.groups, -1, history.sizes.values)
        bias = None if source.bias is None else source.bias.detach().to(dtype)
        moves = self._moved(source.weight)  # or else compensation is zero and free
        own_mean, lags = history.at(W, bias, given if moves else None)
        version = None if output.is_inference() else output._version
        return Seen(given, output, version, moves, own_mean, lags)

    def _moved(self, weight: Tensor) -> bool:
        """Whether the weights may be others at the next iteration, or are others than at the last.

        Those that no gradient is asked for may still be changed: averaged, or thawed again.
        """
        now = None if weight.is_inference() else (id(weight), weight._version)
        before, self._weights = self._weights, now
        return weight.requires_grad or now is None or now != before

    def _by_window(self, x: Tensor) -> Tensor:
        window_settings.check_whole(self)
        if x.numel() == 0:
            return self._empty(x)
        repeats = not self._memory.is_empty() and in_backward()
        keeps = not repeats and may_be_repeated()
        with torch.no_grad(), _full_precision(x):
            own = window.moments(x)
            used, repeated = self._found(own) if repeats else (Used(*own, 1.0), False)
            seen, finite = None, True
            if not repeated:
                seen, lags = self._take(x)
                used, finite = self._combined(own, lags, x)
            if keeps:
                self._memory.keep(own[0].unsqueeze(0), Reference(*used))
            r, d = self._correction(used)
        y = self._normalized(x, used, r, d)
        if not repeated:
            with torch.no_grad(), _full_precision(x):
                self._finish(x.detach(), seen, own, used, finite)
        return y

    def _normalized(self, x: Tensor, used: Used, r: Tensor | None, d: Tensor | None) -> Tensor:
        weight, bias, eps, share = self.weight, self.bias, self.eps, used.share
        if isinstance(share, float) and share == 1.0 and r is None:  # batch norm
            return kernels.run(Call(x, None, None, weight, bias, 1.0, 0.0, 1.0, eps)).y
        return window.normalize(
            x, used.mean, used.var, weight, bias, share=share, eps=eps, r=r, d=d
        )

    def _empty(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[1], dtype=accumulation_dtype(x.dtype))
        return F.batch_norm(x, zeros, zeros, self.weight, self.bias, eps=self.eps)

    def _take(self, x: Tensor) -> tuple[Seen | None, Moments | None]:
        """What the source told of this forward, and the statistics of the lags."""
        if not self._borrows():
            return None, None
        if self.compensation == "none":
            self._history.prepare(x.device, accumulation_dtype(x.dtype))
            return None, None if self._history.empty else self._history.kept()
        told, self._seen = self._seen, None
        seen = window_settings.check_seen(self, told, x)
        return seen, seen.lags

    def _found(self, own: Moments) -> tuple[Used, bool]:
        """What a repeated forward was normalized by the first time, and whether this is one."""
        by_group = own[0].unsqueeze(0)
        (mean, var, share), repeated = self._memory.find(by_group, Reference(*own, 1.0))
        on_host = mean.device.type == "cpu"
        return Used(mean, var, float(share) if on_host else share), bool(repeated)

    def _combined(
        self, own: Moments, lags: Moments | None, x: Tensor
    ) -> tuple[Used, bool | Tensor]:
        """What to normalize by, and whether all of it is finite."""
        if x.numel() == x.shape[1]:
            window_settings.check_follow(self, x)
        if lags is None and x.numel() == x.shape[1]:
            used = self._of_running_statistics(own, x)
        else:
            weights, share = (None, 1.0) if lags is None else self._history.weights()
            if native.usable(own[0]):
                mean, var, finite = native.combined(*own, lags, weights)
                return Used(mean, var, share), finite
            moments = own
            if lags is not None and weights is not None:
                moments = borrowed.combined(*own, *lags, weights)
            used = Used(*moments, share)
        return used, _finite(used.mean, used.var)

    def _of_running_statistics(self, own: Moments, x: Tensor) -> Used:
        window_settings.check_values(self, x)
        mean, var = self.running_mean, self.running_var
        assert mean is not None
        assert var is not None
        return Used(mean.to(own[0]), var.to(own[0]), 0.0)

    def _correction(self, used: Used) -> tuple[Tensor | None, Tensor | None]:
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        if self.limits is None or mean is None or var is None:
            return None, None
        step: Any = 0 if count is None else int(count) if count.is_cpu else count
        running = (mean.to(used.mean), var.to(used.var))
        return correction(used.mean, used.var, *running, *self.limits(step), self.eps)

    def _finish(
        self, x: Tensor, seen: Seen | None, own: Moments, used: Used, finite: bool | Tensor
    ) -> None:
        """Remember the iteration, and move the running statistics if what was used is finite."""
        # two questions: what a source did not read may spoil its E[p] alone; and lags that are not
        # finite at the weights of now have to give way to this iteration, or would stay for good
        counted = _finite(*own) if seen is None else _finite(*own, seen.own_mean)
        moves = counted & finite if isinstance(finite, Tensor) else counted and finite
        values = x.numel() // x.shape[1]
        if self.follow == "window" and used.share != 0.0:
            target, n = used[:2], values + (self._history.values if self._borrows() else 0)
        else:
            target, n = own, values
        if self._borrows():
            self._history.remember(seen, x, *own, counted)
        if n > 1 and moves is not False:
            if self._step is not None:
                self._step += 1
            if self.training and self.track_running_stats:
                self._track(*target, n, moves)

    def _track(self, mean: Tensor, var: Tensor, n: int, counted: bool | Tensor) -> None:
        """Move the running statistics, the variance times n/(n-1) as in nn.BatchNorm."""
        running_mean, running_var = self.running_mean, self.running_var
        count, rate = self.num_batches_tracked, self.momentum
        if running_mean is None or running_var is None:
            return
        running, unbiased = (running_mean, running_var), n / (n - 1)
        if _in_place(running, count, mean):
            if rate is None:
                rate = 1 / (1 if count is None else int(count) + 1)
            native.track(*running, count, mean, var, rate, unbiased)
            return
        part: Any = rate
        if rate is None:
            part = 1.0 if count is None else 1 / (count.to(mean) + 1)
        for buffer, value in zip(running, (mean, var * unbiased), strict=True):
            new = buffer.lerp(value.to(buffer.dtype), part)
            buffer.copy_(new if isinstance(counted, bool) else torch.where(counted, new, buffer))
        if count is not None:
            count.add_(counted)

    def reset_running_stats(self) -> None:
        """Set the statistics to (0, 1) and their count to 0, and forget all iterations."""
        super().reset_running_stats()
        if "_history" in vars(self):  # torch resets before anything of ours is there
            self._history.clear()
            self._step = None

    def _apply(self, *args: Any, **options: Any) -> Any:
        super()._apply(*args, **options)
        self._history.apply(args[0])
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.history != "save":
            return
        like = self._like()
        if like is not None and not self._history.tensors:  # something to load a checkpoint into
            self._history.prepare(like.device, accumulation_dtype(like.dtype))
        # where torch.distributed.checkpoint looks for such things, too
        destination[prefix + _EXTRA_STATE_KEY_SUFFIX] = self._history.state()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **options: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
        key, unexpected = prefix + _EXTRA_STATE_KEY_SUFFIX, args[3]
        unexpected[:] = [name for name in unexpected if name != key]
        self._step = None
        self._history.clear()
        if self.history == "save" and key in state_dict:
            self._history.load(dict(state_dict[key]), self._like())

    def _like(self) -> Tensor | None:
        """A tensor of the device and dtype that the source, or this layer, has."""
        source = () if self.source is None else self.source.parameters()
        return next(chain(source, self.parameters(), self.buffers()), None)

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        text = f"{super().extra_repr()}, window={self.window}, compensation={self.compensation!r}"
        defaults = {"burn_in": 0, "sample": None, "follow": "window", "history": "drop"}
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)!r}"
        if self.limits is not None:
            text += f", limits={self.limits}"
        return text + (", frozen" if self.frozen else "")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None, "_weights": None, "_memory": Memory()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _keep_out_of_graphs()
        if self._source is not None:  # copied with this layer
            meet(self._source[0], self)


class CrossIterationBatchNorm1d(CrossIterationBatchNorm, nn.BatchNorm1d):
    """Cross-Iteration Batch Normalization of (N, C) or (N, C, L) input.

    See ``CrossIterationBatchNorm`` for everything.

    >>> linear, norm = nn.Linear(3, 4), CrossIterationBatchNorm1d(4, window=4)
    >>> norm.attach(linear)
    >>> norm(linear(torch.randn(1, 3))).shape  # from the second iteration on by the window
    torch.Size([1, 4])
    """

    _ranks = (2, 3)


class CrossIterationBatchNorm2d(CrossIterationBatchNorm, nn.BatchNorm2d):
    """Cross-Iteration Batch Normalization of (N, C, H, W) input.

    See ``CrossIterationBatchNorm`` for everything.

    >>> conv, norm = nn.Conv2d(3, 8, 3, bias=False), CrossIterationBatchNorm2d(8)
    >>> norm.attach(conv)
    >>> y = norm(conv(torch.randn(2, 3, 8, 8)))
    >>> sorted(norm.state_dict()) == sorted(nn.BatchNorm2d(8).state_dict())
    True
    """

    _ranks = (4,)


class CrossIterationBatchNorm3d(CrossIterationBatchNorm, nn.BatchNorm3d):
    """Cross-Iteration Batch Normalization of (N, C, D, H, W) input.

    See ``CrossIterationBatchNorm`` for everything.

    >>> conv, norm = nn.Conv3d(1, 2, 3), CrossIterationBatchNorm3d(2)
    >>> norm.attach(conv)
    >>> norm(conv(torch.randn(1, 1, 4, 5, 5))).shape
    torch.Size([1, 2, 2, 3, 3])
    """

    _ranks = (5,)


class CrossIterationBatchNormAct2d(CrossIterationBatchNorm2d):
    """``CrossIterationBatchNorm2d`` with an activation: ``act(drop(norm(x)))``.

    The counterpart of timm's BatchNormAct2d. The state is that of the norm, and of ``act`` and
    ``drop`` if they have any.

    Args:
        num_features: C, the number of channels.
        *settings: those of ``CrossIterationBatchNorm2d`` that may come by position.
        act: applied last; None for nn.ReLU(), nn.Identity() for none.
        drop: applied between norm and activation; None for none.
        **options: those of ``CrossIterationBatchNorm2d``.

    >>> norm = CrossIterationBatchNormAct2d(4, act=nn.SiLU(), compensation="none")
    >>> norm(torch.randn(2, 4, 3, 3)).shape
    torch.Size([2, 4, 3, 3])
    """

    act: nn.Module
    drop: nn.Module

    def __init__(
        self,
        num_features: int,
        *settings: Any,
        act: nn.Module | None = None,
        drop: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_features, *settings, **options)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.ReLU() if act is None else act

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, drop and activate ``input`` (N, C, H, W)."""
        return self.act(self.drop(super().forward(input)))
