from .dataset import Rehearsal as Rehearsal
from .dataset import batch_kl as batch_kl
from .dataset import collate as collate
from .kl import full_kl as full_kl
from .kl import rehearsal_kl as rehearsal_kl
from .targets import Targets as Targets
from .targets import top_targets as top_targets
