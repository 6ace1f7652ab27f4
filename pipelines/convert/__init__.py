"""From images in folders, tars and data sets to one `.beton` file.

source ─read─▶ bytes ─encode─▶ what is stored ─write─▶ file + side-car
       └────── in worker threads ──────┘ └ in order ┘
"""

from pipelines.convert.encode import Encoding, Stored, encode
from pipelines.convert.folder import FolderSource
from pipelines.convert.protocol import Source
from pipelines.convert.run import Report, convert
from pipelines.convert.sources import open_source

__all__ = ["Encoding", "FolderSource", "Report", "Source", "Stored", "convert", "encode", "open_source"]
