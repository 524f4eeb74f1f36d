"""Memory and a stream of the first GPU, for the tensors of an engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.errors import BnfoldError
from bnfold.kernels.compile import KernelError
from bnfold.kernels.device import cuda_device

__all__ = ["DeviceMemory"]


class DeviceMemory:
    """What is allocated is freed with the object.

    Raises:
        BnfoldError: there is no GPU, its driver is too old, or its memory is full.
    """

    def __init__(self) -> None:
        try:
            device = cuda_device(0)
        except KernelError as error:
            raise BnfoldError(f"an engine needs an NVIDIA GPU: {error}") from None
        from cuda.bindings import driver

        self._driver: Any = driver
        self._addresses: list[int] = []
        self._asked(driver.cuCtxSetCurrent(device.context))  # the primary one, as TensorRT's own
        self.stream = int(self._asked(driver.cuStreamCreate(0)))

    def allocate(self, size: int) -> int:
        """The address of so many bytes."""
        address = int(self._asked(self._driver.cuMemAlloc(max(1, size))))
        self._addresses.append(address)
        return address

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        """Copy an array to an address."""
        array = np.ascontiguousarray(array)
        self._asked(self._driver.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes))

    def wait(self) -> None:
        """Until all work on the stream is done."""
        self._asked(self._driver.cuStreamSynchronize(self.stream))

    def __del__(self) -> None:
        for address in getattr(self, "_addresses", ()):
            self._driver.cuMemFree(address)

    def _asked(self, answer: tuple[Any, ...]) -> Any:
        status, *given = answer
        if status:
            raise BnfoldError(f"the GPU's driver refuses: {status.name}")
        return given[0] if given else None
