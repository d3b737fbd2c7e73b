"""One pool over many processes: neighbours and choices that are those of one process, bit for bit."""

from dm2_fast.distributed.acquire import select as select
from dm2_fast.distributed.ring import knn as knn
