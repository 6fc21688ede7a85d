"""The frozen reference that a policy is compared with: the base under a LoRA adapter, a second adapter, or a copy.

Three ways, by what is trained. With LoRA the reference is the base model, the adapter off: it costs nothing. Where it
is to be refreshed, a second, frozen adapter keeps the policy of that moment (``orlaif.policy.lora``). With full
fine-tuning it is a frozen copy of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from orlaif.policy import lora as adapters
from orlaif.policy.lora_settings import check_reference, needs_copy
from orlaif.stages import stage


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run with the model in eval mode, then put it back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class FrozenReference(nn.Module):
    """The reference of one policy.

    Args:
        lora: the arguments of the policy's ``peft.LoraConfig``; None means full fine-tuning.
    """

    def __init__(self, lora: dict[str, Any] | None) -> None:
        super().__init__()
        self.lora = lora
        #: The frozen copy; None with LoRA, and before :meth:`freeze`.
        self.model: nn.Module | None = None
        #: Whether a second, frozen adapter is the reference.
        self.is_adapter = False

    def train(self, mode: bool = True) -> FrozenReference:
        """Stays in eval mode, whatever the policy around it is put into."""
        return super().train(False)

    @stage("freezing the reference")
    def freeze(self, network: Any, refreshed: bool = False, continued: bool = False) -> None:
        """Make the policy as it is now the reference; with LoRA that is the base model, not a copy.

        Args:
            network: the policy's model, of transformers or PEFT.
            refreshed: :meth:`refresh` will be called: with LoRA, add a second, frozen adapter.
            continued: with LoRA, the adapter has been trained before, so that the policy is not its base.

        Raises:
            ValueError: an adapter under which none of these is the policy as it is now.
        """
        if self.lora is None:
            self.model = copy.deepcopy(network).eval().requires_grad_(False)
            return
        check_reference(self.lora)
        if refreshed or continued or needs_copy(self.lora):
            adapters.add_reference(network, self.lora)
            self.is_adapter = True

    @stage("refreshing the reference")
    def refresh(self, network: Any) -> None:
        """Make the policy of this moment the reference.

        Args:
            network: the policy's model.

        Raises:
            ValueError: :meth:`freeze` made none that can be refreshed.
        """
        if self.is_adapter:
            adapters.refresh_reference(network)
        elif self.model is not None:
            self.model.load_state_dict(network.state_dict())
        else:
            raise ValueError("there is no reference to refresh; call load_reference(refreshed=True) first")

    @contextmanager
    def running(self, network: Any) -> Iterator[nn.Module]:
        """A context, without gradient, in which the model that it gives is the reference.

        Args:
            network: the policy's model.

        Raises:
            ValueError: full fine-tuning before :meth:`freeze`.
        """
        with torch.no_grad():
            if self.lora is None:
                if self.model is None:
                    raise ValueError("the reference is not loaded; call load_reference() before training starts")
                yield self.model
            elif self.is_adapter:
                with evaluating(network), adapters.adapter_active(network, adapters.REFERENCE):
                    yield network
            else:
                with evaluating(network), network.disable_adapter():
                    yield network
