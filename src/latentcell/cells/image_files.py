"""One image file to one array with named axes in a fixed order: (C, H, W) or (C, Z, H, W)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from latentcell.errors import InputError

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")
_PNG_DEPTH, _PNG_COLOUR = 24, 25


class ImageFile(NamedTuple):
    """Pixels ``(C, H, W)`` or ``(C, Z, H, W)`` as stored, and the channel names that the file gives, if any."""

    pixels: np.ndarray
    channel_names: list[str] | None


def read_image(path: Path) -> ImageFile:
    """Read a TIFF, OME-TIFF or PNG file.

    Axes come from the file's metadata. An axis without a name (a plain multi-page TIFF) is taken as channels, and so is
    a last axis of at most four pixels. Colour images give channels red, green, blue; transparency is dropped.

    Raises
    ------
    InputError
        If the file is damaged, compressed in an unsupported way, holds a time series or has axes without names.
    """
    array, axes, names = _decode(path)
    pixels = np.ascontiguousarray(_channels_first(array, axes, path))
    return ImageFile(pixels, names if names is not None and len(names) == len(pixels) else None)


def read_labels(path: Path) -> np.ndarray:
    """Read a label image, ``(H, W)`` or ``(Z, H, W)``: 0 is background, each cell has its own whole number.

    Raises
    ------
    InputError
        If the file is damaged or holds several channels.
    """
    if path.suffix.lower() == ".npy":
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except Exception as error:
            raise InputError(f"The label image {path} cannot be read: {_reason(error)}.") from error
    array, axes, _ = _decode(path, colours=False)
    axes = axes.replace("Q", "Z").replace("I", "Z")
    pixels = _channels_first(array, axes, path)
    if len(pixels) != 1:
        raise InputError(f"The label image {path} has {len(pixels)} channels; a label image has one.")
    return np.asarray(pixels[0])


def image_size(path: Path) -> tuple[tuple[int, ...], str]:
    """Shape, channels first, and dtype of an image file; a TIFF's pixels are not read.

    Raises
    ------
    InputError
        As `read_image`.
    """
    if path.suffix.lower() == ".png":
        pixels = read_image(path).pixels
        return tuple(pixels.shape), str(pixels.dtype)
    with _opened(path) as tiff:
        series = tiff.series[0]
        stand_in = np.broadcast_to(np.zeros((), series.dtype), series.shape)
        return tuple(_channels_first(stand_in, series.axes, path).shape), str(series.dtype)


def _decode(path: Path, *, colours: bool = True) -> tuple[np.ndarray, str, list[str] | None]:
    if path.suffix.lower() == ".png":
        return _decode_png(path, colours=colours)
    try:
        with _opened(path) as tiff:
            series = tiff.series[0]
            array, axes, names = series.asarray(), series.axes, _tiff_channel_names(tiff)
            # a fourth colour sample marked as "extra" is transparency, not a dye
            if axes.endswith("S") and array.shape[-1] == 4 and series.keyframe.extrasamples:
                array = array[..., :3]
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"The image {path} cannot be read: {_reason(error)}.") from error
    if names is None and "S" in axes and array.shape[axes.index("S")] == 3:
        names = ["red", "green", "blue"]
    return array, axes, names


def _opened(path: Path) -> Any:
    import tifffile

    try:
        tiff = tifffile.TiffFile(path)
    except Exception as error:
        raise InputError(f"The image {path} cannot be read: {_reason(error)}.") from error
    if not tiff.series:
        tiff.close()
        raise InputError(f"The image {path} holds no pages: the file is damaged or was not written completely.")
    return tiff


def _reason(error: Exception) -> str:
    if "imagecodecs" in str(error):
        return f"{error} (pip install imagecodecs, or save without compression)"
    return f"{error}; the file is damaged or was not written completely"


def _decode_png(path: Path, *, colours: bool) -> tuple[np.ndarray, str, list[str] | None]:
    from PIL import Image

    header = path.read_bytes()[: _PNG_COLOUR + 1]
    if len(header) > _PNG_COLOUR and header[_PNG_DEPTH] == 16 and header[_PNG_COLOUR] in (2, 6):
        raise InputError(f"{path} is a colour PNG with 16 bits per channel, of which 8 would be lost: save it as TIFF.")
    try:
        with Image.open(path) as image:
            if (image.mode == "P" and colours) or image.mode == "RGBA":
                array = np.asarray(image.convert("RGB"))
            elif image.mode == "LA":
                array = np.asarray(image)[..., 0]
            else:
                array = np.asarray(image)
    except Exception as error:
        raise InputError(f"The image {path} cannot be read: {_reason(error)}.") from error
    if array.dtype == np.int32:
        # older Pillow widens 16-bit grey PNG to 32 bits
        array = array.astype(np.uint16)
    return (array, "YXS", ["red", "green", "blue"]) if array.ndim == 3 else (array, "YX", None)


def _channels_first(array: np.ndarray, axes: str, path: Path) -> np.ndarray:
    """View of `array` with its axes as (C, [Z,] Y, X)."""
    single = [i for i, axis in enumerate(axes) if axis not in "ZYX" and array.shape[i] == 1]
    array = array.squeeze(tuple(single))
    axes = "".join(axis for i, axis in enumerate(axes) if i not in single)
    unnamed = [axis for axis in axes if axis not in "CZYXS"]
    if len(unnamed) == 1 and unnamed[0] in "QIS" and "C" not in axes and "S" not in axes:
        axes = axes.replace(unnamed[0], "C")
        if axes == "CYX" and array.shape[2] <= 4 < array.shape[0]:
            axes = "YXC"
    if "S" in axes and "C" not in axes:
        axes = axes.replace("S", "C")
    if not {"Y", "X"} <= set(axes) <= set("CZYX") or len(set(axes)) != len(axes):
        time = " It seems to be a time series: save one file per cell and time." if "T" in axes else ""
        raise InputError(
            f"The image {path} has axes {axes} with lengths {tuple(array.shape)}; a cell needs channels, z, y and x at "
            f"most.{time}"
        )
    if "C" not in axes:
        array, axes = array[None], "C" + axes
    target = "CZYX" if "Z" in axes else "CYX"
    return array.transpose([axes.index(axis) for axis in target])


def _tiff_channel_names(tiff: Any) -> list[str] | None:
    if tiff.is_ome and tiff.ome_metadata:
        pixels = ElementTree.fromstring(tiff.ome_metadata).find("./{*}Image/{*}Pixels")
        channels = pixels.findall("{*}Channel") if pixels is not None else []
        names = [channel.get("Name") for channel in channels]
        return [str(name) for name in names] if names and all(names) else None
    metadata: dict[str, Any] = {}
    if tiff.is_imagej:
        metadata = tiff.imagej_metadata or {}
    elif tiff.shaped_metadata:
        metadata = tiff.shaped_metadata[0]
    stored = metadata.get("channel_names", metadata.get("Labels"))
    return [str(name) for name in stored] if isinstance(stored, list | tuple) else None
