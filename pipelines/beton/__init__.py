"""The `.beton` file format of FFCV, version 2: one file that holds a whole data set.

`BetonReader` maps a file into memory and decodes samples, `BetonWriter` streams samples into a new file.
"""

from pipelines.beton.reader import BetonReader
from pipelines.beton.sets import Files
from pipelines.beton.sidecar import read_sidecar, sidecar_path
from pipelines.beton.writer import BetonWriter

__all__ = ["BetonReader", "BetonWriter", "Files", "read_sidecar", "sidecar_path"]
