"""Conditions: which examples come together in a gradient batch, and which share statistics.

A sampler yields index batches; in a batch, each run of ``group_size`` consecutive examples is a
group that is normalized together. The gradient is always that of the whole batch. What each
condition of ``CONDITIONS`` stands for:

============  =====================================================================================
iid           one device with room for the whole batch: the case batch norm is made for
microbatch    data-parallel training with few examples a device, each with statistics of its own
clustered     devices whose shards are sorted: a device sees one class, all together see many
              (Ioffe 2017, section 4.3)
two_classes   the same, milder; four_classes, milder still
twins         batches that are put together on purpose: two examples of each class in a group
halved_twins  the control to that: the same batches, but twins do not share statistics
devices       as microbatch, and each device has running statistics of its own
accumulation  a batch too large for memory, in several forwards and backwards before each step
pk            metric learning (faces, products): pairs and triplets need several examples a class
sorted        data read in the order of the disk, classes one after the other: the gradient, too,
              is of one class or two
frames        video, or several crops of a picture: the examples of a group are nearly the same
shift         another camera or hospital in use than in training: the running statistics are of
              the wrong images
============  =====================================================================================

``frames`` changes the images of training and of testing, ``shift`` those of testing alone
(``renorm.lab.conditions.views`` says how). In ``frames`` both are changed in the same way, so that
what a net loses in eval mode is due to its statistics and not to images of another kind.

In a training loop of your own, ``BatchSampler`` gives the batches of any sampler to a DataLoader.
"""

from renorm.lab.conditions.base import Condition as Condition
from renorm.lab.conditions.base import Sampler as Sampler
from renorm.lab.conditions.base import View as View
from renorm.lab.conditions.base import check_labels as check_labels
from renorm.lab.conditions.base import check_sizes as check_sizes
from renorm.lab.conditions.clustered import Clustered as Clustered
from renorm.lab.conditions.loading import BatchSampler as BatchSampler
from renorm.lab.conditions.pairs import PK as PK
from renorm.lab.conditions.registry import CONDITIONS as CONDITIONS
from renorm.lab.conditions.shuffled import Frames as Frames
from renorm.lab.conditions.shuffled import Shuffled as Shuffled
from renorm.lab.conditions.shuffled import Sorted as Sorted
from renorm.lab.conditions.views import filmed as filmed
from renorm.lab.conditions.views import shifted as shifted
