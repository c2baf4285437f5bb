"""Small networks with nn.BatchNorm, which a comparison replaces by each normalizer."""

from renorm.lab.models.convnet import ConvNet as ConvNet
from renorm.lab.models.mlp import SigmoidMLP as SigmoidMLP
from renorm.lab.models.registry import MODELS as MODELS
from renorm.lab.models.registry import Model as Model
from renorm.lab.models.resnet import ResNet8 as ResNet8
from renorm.lab.models.resnet import ResNet14 as ResNet14
from renorm.lab.models.resnet import ResNet18 as ResNet18
from renorm.lab.models.resnet import ResNet20 as ResNet20
from renorm.lab.models.unet import UNet as UNet
from renorm.lab.models.vgg import VGG as VGG
