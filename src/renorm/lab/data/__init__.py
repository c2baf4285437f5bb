"""Readers of data sets: files or an installed package in, tensors out. Nothing is downloaded."""

from renorm.lab.data.digits import digits as digits
from renorm.lab.data.images import Images as Images
