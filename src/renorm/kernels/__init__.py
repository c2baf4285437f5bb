"""The arithmetic of batch renorm, a file a backend; ``select`` picks one and can say why."""

from renorm.kernels.call import Averages as Averages
from renorm.kernels.call import Call as Call
from renorm.kernels.call import Outcome as Outcome
from renorm.kernels.call import accumulation_dtype as accumulation_dtype
from renorm.kernels.call import finished as finished
from renorm.kernels.select import Choice as Choice
from renorm.kernels.select import at_once as at_once
from renorm.kernels.select import batch_mean as batch_mean
from renorm.kernels.select import check_name as check_name
from renorm.kernels.select import choose as choose
from renorm.kernels.select import names as names
from renorm.kernels.select import run as run
from renorm.kernels.snapshot import snapshot as snapshot
