"""Batch Renormalization as nn.Modules: subclasses of nn.BatchNorm with the same state."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from renorm import collectives, functional, kernels
from renorm.collectives import Group
from renorm.errors import ArgumentError
from renorm.kernels import Averages, Call
from renorm.kernels.exporting import is_exporting
from renorm.limits import Limits, paper
from renorm.nn import gradient_averages, sharing
from renorm.nn.batch_norm import BatchNormBase
from renorm.nn.deferral import Batch, Deferral, Pool, is_ready
from renorm.nn.gradient_averages import Backward
from renorm.nn.inputs import by_running_statistics, check_input
from renorm.nn.recomputation import Memory, Reference, in_backward, may_be_repeated

Schedule = Callable[[Any], tuple[Any, Any]]
PAPER = paper()
_PLAIN = (Tensor, nn.Parameter)
_RAMPS_IN_KERNEL = "cuda"  # arithmetic on the counter would be launches there


class BatchRenorm(BatchNormBase):
    """Batch Renormalization of any rank: (N, C) or (N, C, *spatial).

    In training, with eps inside roots and the biased variance of the batch::

        y = weight * ((x - mu_B) / sigma_B * r + d) + bias
        r = clip(sigma_B / sigma, 1 / r_max, r_max)
        d = clip((mu_B - running_mean) / sigma, -d_max, d_max),  sigma = sqrt(running_var + eps)

    r and d carry no gradient and use the statistics from before this step; then
    ``running_mean`` and ``sigma`` move towards the batch's by ``momentum``. In eval it is
    nn.BatchNorm, the same operation on the same five state entries, so checkpoints load both
    ways. The 1d, 2d and 3d classes also check the rank of their input.

    Args:
        num_features: C, the number of channels.
        eps: added to variances inside the root, above 0.
        momentum: update rate of the running statistics, 0 to 1; None for the plain average over
            all batches so far. The paper's is 0.01, "relatively fast" for it; torch's default
            of 0.1 for batch norm lets the reference jump with every batch.
        affine: whether there are weight and bias.
        track_running_stats: if False, there is no reference: batch statistics, always. Set to
            False later, the layer reads its statistics and no longer writes them.
        device, dtype: of parameters and statistics.
        bias: whether an affine layer has a bias.
        limits: ``step -> (r_max, d_max)``, see ``renorm.limits``; the step is
            ``num_batches_tracked``, so the schedule resumes with the checkpoint.
        microbatch: normalize in groups of this many examples; None for the whole batch.
        single: a channel with one value per group raises (``"raise"``), or is normalized by the
            running statistics, which then stay as they are (``"running"``).
        kernel: implementation to use; None has the fastest that takes the input chosen.
        sync: what the processes of a group share. None: nothing. ``"batch"``: the statistics of
            each batch, so all of it is as if one process had all examples; the group exchanges
            twice a layer. ``"running"``: the running statistics, by one exchange a step that
            nothing waits for; see ``renorm.distributed.sync_running``, which it needs.
        process_group: of torch.distributed, for ``sync``; None for the default one.
        backward: what a backward pass removes from the gradient, see below.
        backward_momentum: update rate of the averages of ``backward="moving"``, above 0 to 1.

    With ``backward="batch"``, the paper's, the gradient loses what a batch, or group, has in common
    and its part along x; if a group is of one class, that is what training would need. With
    ``backward="moving"`` it loses moving averages of the two over earlier backward passes instead::

        dx = weight * r / sigma_B * (g - E[g] - z * E[g x_hat]),     g = dL/dy
        z = (x - mu_B) / sigma_B,    x_hat = z * r + d

    While the limits are (1, 0) this is the paper's, too. Every backward pass moves the averages
    once, a second one through the same graph as well, and one repeated by activation checkpointing
    once in all; a pass with anything not finite moves nothing. The first ones are plain averages.
    The state_dict does not have them: after loading one they start anew, which 1 /
    backward_momentum passes later no longer matters, like a change of the loss scale. Copies and
    pickles have them, and each process its own. There is no second derivative, nothing of
    torch.func, and no ``sync="batch"``.

    Source: Ioffe 2017 (arXiv 1702.03275), Algorithm 1; Yan et al. 2020 (ICLR, Towards Stabilizing
    Batch Statistics in Backward Propagation) for moving averages in backward passes.
    """

    limits: Schedule
    microbatch: int | None
    single: Literal["raise", "running"]
    kernel: str | None
    sync: sharing.Sync
    backward: Backward = "batch"
    backward_momentum: float = 0.3
    frozen: bool
    _joint_forwards: int  # with statistics of the batches of all processes
    _memory: Memory
    _held_group: collectives.Held | None
    _deferral: Deferral | None = None
    _pool: Pool | None = None
    _averages: Averages | None = None
    _ranks: ClassVar[tuple[int, ...]] = ()
    qconfig = sharing.LostToSyncBatchNorm(
        "its limits, and batch renorm itself, would be lost. Share its statistics with "
        "renorm.convert(model, sync='batch'), or build it with sync='batch'"
    )

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        limits: Schedule = PAPER,
        microbatch: int | None = None,
        single: Literal["raise", "running"] = "raise",
        kernel: str | None = None,
        sync: sharing.Sync = None,
        process_group: Group = None,
        backward: Backward = "batch",
        backward_momentum: float = 0.3,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.configure(
            limits=limits,
            microbatch=microbatch,
            single=single,
            kernel=kernel,
            sync=sync,
            process_group=process_group,
            backward=backward,
            backward_momentum=backward_momentum,
        )

    def configure(
        self,
        *,
        limits: Schedule = PAPER,
        microbatch: int | None = None,
        single: Literal["raise", "running"] = "raise",
        kernel: str | None = None,
        sync: sharing.Sync = None,
        process_group: Group = None,
        backward: Backward = "batch",
        backward_momentum: float = 0.3,
    ) -> None:
        """Set everything that this layer has and nn.BatchNorm has not.

        Raises:
            ArgumentError: a setting outside the ranges above.
        """
        if not callable(limits):
            raise ArgumentError(
                f"limits is called with the step and returns (r_max, d_max), got {limits!r}. "
                "Take one of renorm.limits, such as limits.paper() or limits.fixed(3, 5)."
            )
        functional.check_settings(self.momentum, self.eps, microbatch, single, kernel)
        sharing.check_settings(sync, process_group, microbatch)
        gradient_averages.check_settings(
            backward, backward_momentum, kernel, sync, self.track_running_stats
        )
        self.limits = limits
        self.microbatch = microbatch
        self.single = single
        self.kernel = kernel
        self.sync = sync
        self.process_group = process_group
        self.backward = backward
        self.backward_momentum = backward_momentum
        self._begin_averages()
        self.frozen = False
        self._leave_deferral()
        self._joint_forwards = 0
        self._memory = Memory()

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize ``input`` (N, C, *spatial).

        Args:
            input: floating point, C channels in dimension 1.
            mask: (N, *spatial) bool, True = real data. Padding enters no statistic and is
                returned as 0.
        """
        return self._normalized(input, mask)

    def _normalized(
        self, x: Tensor, mask: Tensor | None, residual: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        """The output, with a residual added and negative values made 0 where asked for."""
        if mask is None and residual is None:
            y = self._at_once(x, relu)
            if y is not None:
                return y
        self._check_input_dim(x)
        if (self.frozen or not self.training) and self.running_mean is not None:
            y = self._by_running_statistics(x, mask)
            y = y if residual is None else y + residual
            # in place saves a tensor of that size, but exported programs are free of it
            return y if not relu else y.relu() if torch.compiler.is_compiling() else y.relu_()
        return self._by_batch_statistics(x, mask, residual, relu)

    def _settle(self) -> None:
        """Have the statistics that processes are exchanging arrive, before they are read."""
        if self._deferral is not None:
            self._deferral.settle()

    def _replace_statistics(self) -> None:
        """Have the statistics arrive, and nothing after, before others take their place."""
        if self._deferral is not None:
            self._deferral.conclude()
        if self._pool is not None:
            self._pool.clear()

    def _begin_averages(self) -> None:
        """Have averages where the statistics are, before code is compiled that moves them."""
        self._averages = None
        if is_ready(self):
            mean: Any = self.running_mean
            with torch.inference_mode(False):
                self._averages_at(mean.device)

    def _replace_state(self) -> None:
        """Have the statistics replaced, and the averages of gradients start anew."""
        self._replace_statistics()
        if self._averages is not None:
            gradient_averages.restart(self._averages)

    def _leave_deferral(self) -> None:
        """Update the statistics in each forward, as by default."""
        self._replace_statistics()
        if self._deferral is not None:
            self._deferral.release(self)

    def reset_running_stats(self) -> None:
        """Set the statistics to (0, 1) and their count to 0, as a new layer has them."""
        self._replace_state()
        super().reset_running_stats()

    def _save_to_state_dict(self, *args: Any, **options: Any) -> None:
        self._settle()
        super()._save_to_state_dict(*args, **options)

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self._replace_state()
        super()._load_from_state_dict(*args, **options)

    def _apply(self, *args: Any, **options: Any) -> Any:
        self._settle()
        super()._apply(*args, **options)
        mean, averages = self.running_mean, self._averages
        if averages is not None and mean is not None and mean.device != averages.values.device:
            self._begin_averages()
        return self

    def restart_limits(self) -> None:
        """Start the schedule of the limits again, as after loading batch norm's checkpoint."""
        self._replace_statistics()
        count = self.num_batches_tracked
        if count is not None:
            with torch.inference_mode(count.is_inference()):  # else such a tensor is read-only
                count.zero_()

    def extra_repr(self) -> str:
        """The settings, as ``print(model)`` shows them."""
        text = f"{super().extra_repr()}, limits={self.limits}"
        if self.microbatch is not None:
            text += f", microbatch={self.microbatch}"
        if self.single != "raise":
            text += f", single={self.single!r}"
        if self.kernel is not None:
            text += f", kernel={self.kernel!r}"
        if self.sync is not None:
            text += f", sync={self.sync!r}"
        if self.backward != "batch":
            text += f", backward={self.backward!r}, backward_momentum={self.backward_momentum}"
        return text + (", frozen" if self.frozen else "")

    @property
    def process_group(self) -> Group:
        """The group that ``sync`` shares statistics in; None for the default one."""
        held = self._held_group
        return None if held is None else held.group

    @process_group.setter
    def process_group(self, group: Group) -> None:
        self._held_group = None if group is None else collectives.Held(group)

    def _check_input_dim(self, input: Tensor) -> None:
        check_input(self, input, self._ranks)

    def _by_running_statistics(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not torch.compiler.is_compiling():
            self._settle()
        y = by_running_statistics(self, x)
        if mask is None:
            return y
        functional.check_mask(x, mask)
        return torch.where(mask.unsqueeze(1), y, 0)

    def _at_once(self, x: Tensor, relu: bool) -> Tensor | None:
        """The output of the most common step; None, and nothing done, if this is another one.

        What follows in ``_normalized`` serves this step too, in twice the time: every object
        between here and the kernel is read anew, once a layer's tensors have filled the caches.
        """
        parameters, counter = self._parameters, self._buffers.get("num_batches_tracked")
        if (
            torch.compiler.is_compiling()
            or type(x) not in _PLAIN
            or not (x.dim() in self._ranks if self._ranks else x.dim() >= 2)
            or type(counter) is not Tensor
            or not counter.is_cpu
            or not self.training
            or not self.track_running_stats
            or self.frozen
            or self.kernel is not None
            or self.microbatch is not None
            or self.momentum is None
            or self.sync is not None
            or self.backward != "batch"
            or self._deferral is not None
            or "weight" not in parameters  # parametrized, or replaced by a wrapper
            or "bias" not in parameters
            or torch._C._are_functorch_transforms_active()
            or may_be_repeated()
            or (not self._memory.is_empty() and in_backward())
            or type(self)._check_input_dim is not BatchRenorm._check_input_dim
        ):
            return None
        mean, var = self._buffers.get("running_mean"), self._buffers.get("running_var")
        r_max, d_max = self.limits(int(counter))
        return kernels.at_once(
            Call(
                x,
                mean,
                var,
                parameters["weight"],
                parameters["bias"],
                r_max,
                d_max,
                self.momentum,
                self.eps,
                relu=relu,
                counter=counter,
                in_place=True,
            )
        )

    def _by_batch_statistics(
        self, x: Tensor, mask: Tensor | None, residual: Tensor | None, relu: bool
    ) -> Tensor:
        tracks = self.training and self.track_running_stats
        group, pool = self._shared(tracks)
        reference, weight, bias = self._tensors()
        measures = x.numel() > 0 or group is not None  # a joint batch has examples elsewhere
        repeats = not self._memory.is_empty() and in_backward() and measures
        keeps = not repeats and may_be_repeated()
        plain = not (repeats or keeps or torch.compiler.is_compiling())
        in_place = tracks and pool is None and plain
        given = (x, weight, bias, mask, residual, relu, in_place, group, pool)
        call = self._call(reference, *given)
        functional.check(call, self.single)
        if reference is None:
            return functional.apply(call, self.kernel).y
        repeated = None
        if repeats:
            mean = kernels.batch_mean(call, self.kernel)
            reference, repeated = self._memory.find(mean, reference)
            call = self._call(reference, *given)
        outcome = functional.apply(call, self.kernel)
        if keeps and measures:
            assert outcome.batch_mean is not None
            self._memory.keep(outcome.batch_mean, reference)
        if pool is not None:
            self._put_off(pool, call, outcome, repeated)
        elif tracks and outcome.new_mean is not None:
            self._write(outcome, repeated)
        return outcome.y

    def _shared(self, tracks: bool) -> tuple[Group, Pool | None]:
        """The group that this batch is shared with, and the pool that its statistics wait in."""
        deferral = self._deferral
        if not torch.compiler.is_compiling():
            if deferral is not None and tracks:
                deferral.meet(self)
            elif self.sync == "running" and tracks:
                sharing.refuse_alone(self)
        group = None
        if self.sync == "batch" and self.training:
            group = collectives.resolved(self.process_group)
            if group is not None and not torch.compiler.is_compiling():
                if self._joint_forwards % sharing.AGREE_EVERY == 0:
                    collectives.agree(sharing.described(self), group)
                self._joint_forwards += 1
        if deferral is None or not tracks or self.running_mean is None:
            return group, None
        return group, deferral.pool_of(self)

    def _put_off(
        self, pool: Pool, call: Call, outcome: kernels.Outcome, repeated: Tensor | None
    ) -> None:
        """Pool the statistics of the batch; not those of a repeated forward."""
        new_mean, new_var, counted = outcome.new_mean, outcome.new_var, outcome.counted
        assert new_mean is not None
        assert new_var is not None
        assert counted is not None
        if repeated is not None:
            counted = counted & ~repeated
        values = outcome.values
        if values is None:
            x, mask = call.x, call.mask
            values = x[:, :1].numel() if mask is None else mask.sum(dtype=torch.float64)
        pool.add(Batch(counted, values, new_mean, new_var))

    def _tensors(self) -> tuple[Reference | None, Tensor | None, Tensor | None]:
        """The reference, weight and bias."""
        mean, var, step = self.running_mean, self.running_var, self.num_batches_tracked
        weight, bias = self.weight, self.bias
        if mean is None or var is None:
            return None, weight, bias
        if step is None:
            return Reference(mean, var, 0), weight, bias
        if torch.compiler.is_compiling() and not is_exporting():
            return Reference(*kernels.snapshot(mean, var, step)), weight, bias
        return Reference(mean, var, step), weight, bias

    def _call(
        self,
        reference: Reference | None,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        residual: Tensor | None,
        relu: bool,
        in_place: bool,
        group: Group,
        pool: Pool | None,
    ) -> Call:
        limits: Any = self.limits
        # with a whole step the new statistics are those of the batch, for the pool
        momentum, counter = 1.0 if pool is not None else self.momentum, None
        if reference is None:
            mean, var, r_max, d_max = None, None, 1.0, 0.0
        else:
            mean, var, counter = reference
            step = _on_host(counter)
            if type(limits) is Limits and _has_ramps_in_kernel(counter):
                r_max, d_max = limits.r_max, limits.d_max
            else:
                r_max, d_max = limits(step)
            if momentum is None:
                momentum = 1 / (step + 1)
        return Call(
            x,
            mean,
            var,
            weight,
            bias,
            r_max,
            d_max,
            1.0 if momentum is None else momentum,
            self.eps,
            mask,
            self.microbatch,
            residual,
            relu,
            counter if isinstance(counter, Tensor) else None,
            in_place,
            group,
            averages=self._averages_at(x.device) if reference is not None else None,
        )

    def _averages_at(self, device: torch.device) -> Averages | None:
        """Those of this layer's gradients, begun anew on another device; None if it keeps none."""
        if self.backward == "batch":
            return None
        if self._averages is None or self._averages.values.device != device:
            averages = gradient_averages.begun(self, device)
            if not torch.is_grad_enabled():  # tensors of inference mode could not be moved later
                return averages
            self._averages = averages
        return self._averages._replace(momentum=self.backward_momentum)

    def _write(self, outcome: kernels.Outcome, repeated: Tensor | None) -> None:
        """Move the buffers to the new statistics, in place; not for a repeated forward."""
        new_mean, new_var, counted = outcome.new_mean, outcome.new_var, outcome.counted
        assert new_mean is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert new_var is not None
        assert counted is not None
        with torch.no_grad():
            if repeated is not None:
                counted = counted & ~repeated
                new_mean = torch.where(repeated, self.running_mean, new_mean)
                new_var = torch.where(repeated, self.running_var, new_var)
            for buffer, new in ((self.running_mean, new_mean), (self.running_var, new_var)):
                value = functional.stored(new, buffer, counted)
                assert value is not None
                buffer.copy_(value)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(counted)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        state = {**self.__dict__, "_memory": Memory()}
        for name in ("_deferral", "_pool"):  # an exchange is copied with its root, and links anew
            state.pop(name, None)
        return state


def _has_ramps_in_kernel(counter: Tensor | float) -> bool:
    return isinstance(counter, Tensor) and counter.device.type == _RAMPS_IN_KERNEL


def _on_host(step: Tensor | float) -> Tensor | float:
    """The step as a number where reading it stops nothing: numbers need no tensor arithmetic."""
    if type(step) is not Tensor or step.device.type != "cpu" or torch.compiler.is_compiling():
        return step
    return step if torch._C._are_functorch_transforms_active() else int(step)


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    """Batch Renormalization of (N, C) or (N, C, L) input; see ``BatchRenorm`` for everything.

    >>> from renorm.limits import fixed
    >>> layer = BatchRenorm1d(4, limits=fixed(3, 5))
    >>> layer(torch.randn(8, 4)).shape
    torch.Size([8, 4])
    """

    _ranks = (2, 3)


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    """Batch Renormalization of (N, C, H, W) input; see ``BatchRenorm`` for everything.

    >>> layer = BatchRenorm2d(16)
    >>> y = layer(torch.randn(2, 16, 8, 8))
    >>> sorted(layer.state_dict()) == sorted(nn.BatchNorm2d(16).state_dict())
    True
    """

    _ranks = (4,)


class BatchRenorm3d(BatchRenorm, nn.BatchNorm3d):
    """Batch Renormalization of (N, C, D, H, W) input; see ``BatchRenorm`` for everything.

    >>> BatchRenorm3d(2)(torch.randn(1, 2, 3, 4, 4)).shape
    torch.Size([1, 2, 3, 4, 4])
    """

    _ranks = (5,)
