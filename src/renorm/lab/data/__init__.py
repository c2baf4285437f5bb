"""Readers of data sets: files or an installed package in, tensors out.

The files lie in one folder, laid out as torchvision does it. Nothing is downloaded, unless it is
asked for: then torchvision's own download is tried for the data sets that it has.
"""

from renorm.lab.data.bccd import BloodCells as BloodCells
from renorm.lab.data.bccd import bccd as bccd
from renorm.lab.data.cifar import cifar10 as cifar10
from renorm.lab.data.digits import digits as digits
from renorm.lab.data.images import Images as Images
from renorm.lab.data.mnist import fashion_mnist as fashion_mnist
from renorm.lab.data.mnist import mnist as mnist
from renorm.lab.data.omniglot import omniglot as omniglot
from renorm.lab.data.tabular import breast_cancer as breast_cancer
