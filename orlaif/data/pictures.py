"""Pictures that stand for a video: a list of files in order, each on display for an equal time.

Whatever depth and palette a picture has, it comes as 8 bits of RGB, upright by its EXIF orientation, opaque.
"""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import pil_to_tensor

from orlaif.data.containers import container_of, cut_off

#: Of the container of MP4, in files that are no video.
_UNREAD_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1")


def wanted_pictures(times: Tensor, number: int, fps: float) -> list[int]:
    """Which of ``number`` pictures are on display at ``times`` f64[n] in seconds, each once, in order."""
    # Times lie at the edge of two pictures only up to rounding, 0.6 * 5 being less than 3.
    return sorted({max(0, min(math.floor(time * fps + 1e-9), number - 1)) for time in times.tolist()})


def read_picture(file: Any) -> Tensor:
    """A picture u8[3, H, W] from an open binary file.

    Raises:
        ValueError: the file is cut off, holds several pictures, or is no picture of a kind that is read.
        RuntimeError: from torchvision, it is broken.
    """
    kind = container_of(file)
    if kind in ("png", "gif") and (missing := cut_off(file, kind)) is not None:
        raise ValueError(missing)
    file.seek(0)
    content = file.read()
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":  # torchvision does not turn these upright
        return pil_to_tensor(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in _UNREAD_BRANDS:
        raise ValueError("it is an AVIF or HEIC picture, which is not read here; save it as PNG, JPEG or WebP")
    if kind not in ("png", "gif", "mjpeg", "other"):
        raise ValueError(f"it is a video ({kind}), not a picture; a frame is a PNG, JPEG, WebP or GIF picture")
    if kind == "other":
        raise ValueError("it is not a PNG, JPEG, WebP or GIF picture")
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    picture = decode_image(data, mode=ImageReadMode.RGB, apply_exif_orientation=True)
    if picture.ndim == 4 or (kind == "png" and b"acTL" in content[:4096]):
        raise ValueError("holds several pictures; a frame is one")
    if picture.dtype == torch.uint16:
        picture = ((picture.to(torch.int32) * 255 + 32767) // 65535).to(torch.uint8)
    if picture.dtype != torch.uint8 or picture.shape[0] != 3:
        raise ValueError(f"decodes to {picture.dtype}{list(picture.shape)}; 8 bits of RGB are needed")
    return picture
