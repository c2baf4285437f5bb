"""The quantities by name."""

from renorm.measure.batch_dependence import BatchDependenceQuantity
from renorm.measure.batch_noise import BatchNoiseQuantity
from renorm.measure.channel_health import ChannelHealthQuantity
from renorm.measure.composition_shift import CompositionShiftQuantity
from renorm.measure.cross_example_influence import CrossExampleInfluenceQuantity
from renorm.measure.effective_count import EffectiveCountQuantity
from renorm.measure.quantity import Quantity
from renorm.measure.tile_consistency import TileConsistencyQuantity
from renorm.measure.train_eval_gap import TrainEvalGapQuantity

QUANTITIES: dict[str, type[Quantity]] = {
    "train_eval_gap": TrainEvalGapQuantity,
    "batch_noise": BatchNoiseQuantity,
    "batch_dependence": BatchDependenceQuantity,
    "effective_count": EffectiveCountQuantity,
    "channel_health": ChannelHealthQuantity,
    "cross_example_influence": CrossExampleInfluenceQuantity,
    "composition_shift": CompositionShiftQuantity,
    "tile_consistency": TileConsistencyQuantity,
}
