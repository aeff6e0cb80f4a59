from .callbacks import ForgettingBrake as ForgettingBrake
from .callbacks import ForgettingTracker as ForgettingTracker
from .callbacks import RegionFreeze as RegionFreeze
from .errors import CheckError as CheckError
from .errors import UserError as UserError
from .evaluation import ForgettingWatch as ForgettingWatch
from .evaluation import evaluate as evaluate
from .freezing import freeze as freeze
from .freezing import pull as pull
from .regions import Region as Region
from .regions import ablate as ablate
from .regions import perturb as perturb
from .scoring import Scores as Scores
from .scoring import compute_scores as compute_scores
from .scoring import select as select

__version__: str
