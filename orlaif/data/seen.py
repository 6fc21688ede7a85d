"""What is seen of a prompt, decoded: the clip of its video, or its images and videos one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torchvision.transforms.v2.functional import resize

from orlaif.data.pictures import read_picture
from orlaif.data.sampling import PixelBudget, Sampling, StatedSampling
from orlaif.data.video import decode_clip, open_media, plain_cause
from orlaif.types import Image, Media, Picture, Prompt, Seen, Video, VideoClip, VideoError, VideoPrompt

#: As :func:`~orlaif.data.video.decode_clip`, of a prompt about one video.
Decode = Callable[[Prompt, Sampling, str, PixelBudget | None], VideoClip]


def decode_seen(
    prompt: Prompt,
    sampling: Sampling,
    device: str = "cpu",
    budget: PixelBudget | None = None,
    decode: Decode = decode_clip,
) -> Seen:
    """Decode all that a prompt shows.

    Args:
        prompt: of any kind.
        sampling: when to look at each of its videos.
        device: where to decode; images come from the CPU.
        budget: how large the frames of each video may be, and each image.
        decode: of a prompt about one video, such as from a cache.

    Returns:
        The clip of a prompt about one video, else its media in their order.

    Raises:
        VideoError: a file cannot be used.
    """
    if prompt.video:
        return decode(prompt, sampling, device, budget)
    items: list[Picture | VideoClip] = []
    stills = _stills(prompt, device, budget, decode)
    for part in prompt.media:
        if isinstance(part, Image):
            items.append(stills[part] if part in stills else decode_image(part.path, device, budget))
        else:
            items.append(decode(about_video(prompt, part), sampling, device, budget))
    return Media(items=tuple(items))


def _stills(prompt: Prompt, device: str, budget: PixelBudget | None, decode: Decode) -> dict[Image, Picture]:
    """The images of a prompt that are frames of videos; each video is opened once for all of its frames.

    Raises:
        VideoError: a video cannot be used, or ends before a frame.
    """
    images = [part for part in prompt.media if isinstance(part, Image) and part.at_s is not None]
    most = [] if budget is None else [pixels for pixels in (budget.per_frame, budget.per_clip) if pixels]
    each = PixelBudget(per_frame=min(most)) if most else None
    stills = {}
    for path in dict.fromkeys(image.path for image in images):
        wanted = [image for image in images if image.path == path]
        times = tuple(sorted({image.at_s or 0.0 for image in wanted}))
        clip = decode(about_video(prompt, Video(path)), StatedSampling(times), device, each)
        for image in wanted:  # the frame that began last
            place = int(torch.searchsorted(clip.pts_s, (image.at_s or 0.0) + 1e-6)) - 1
            stills[image] = Picture(pixels=clip.frames[max(0, place)], path=path)
    return stills


def about_video(prompt: Prompt, video: Video) -> VideoPrompt:
    """One of the videos of a prompt, as a prompt about it alone."""
    return VideoPrompt(
        id=prompt.id,
        video=video.path,
        question=prompt.question,
        start_s=video.start_s,
        end_s=video.end_s,
        frames=video.frames,
        frames_fps=video.frames_fps,
    )


def decode_image(path: str, device: str = "cpu", budget: PixelBudget | None = None) -> Picture:
    """A picture, at its own size unless ``budget`` shrinks it.

    Args:
        path: or URL; PNG, JPEG, WebP or GIF of one picture.
        device: of the pixels.
        budget: most pixels, as of a clip of one frame.

    Raises:
        VideoError: it cannot be used.
    """
    try:
        with open_media(path) as file:
            pixels = read_picture(file)
        size = tuple(pixels.shape[1:])
        if budget is not None and (smaller := budget.size(size[0], size[1], 1)) != size:
            pixels = resize(pixels, list(smaller), antialias=True)
        return Picture(pixels=pixels.to(torch.device(device)), path=path)
    except VideoError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise VideoError(path, f"cannot be decoded ({plain_cause(error)})") from error
