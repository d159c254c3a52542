"""One thread for every process of the tests: toys lose more to threads that wait for one another than they gain."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
