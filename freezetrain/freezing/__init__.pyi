from .handle import Freeze as Freeze
from .handle import FreezeOptions as FreezeOptions
from .handle import freeze as freeze
from .verify import Comparison as Comparison
from .verify import Offender as Offender
from .verify import compare_checkpoints as compare_checkpoints
from .verify import compare_weights as compare_weights
