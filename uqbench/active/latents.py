"""One vector per structure that says how the model sees it, for distances between structures."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from uqbench.active.acquisition.objective import graphs_for
from uqbench.data.structures import Structures
from uqbench.uq.base import UQMethod


def structure_latents(method: UQMethod, structures: Structures, batch_size: int) -> NDArray[np.float64]:
    """Return the latents of each structure, (S, elements · members · F), float64.

    The mean over the atoms of an element, element by element (those that the model knows; zero where a structure has
    none of one), member by member. Invariant to rotation, reflection and exchange of like atoms.
    """
    n_elements = len(method.potential.references)
    rows = []
    for batch in graphs_for(method, structures).batches(batch_size):
        latents = method.potential(batch).latents.double()
        latents = latents.movedim(-2, 0).flatten(1)  # (N, members · F)
        group = batch.system * n_elements + method.potential.species_of_element[batch.numbers]
        sums = latents.new_zeros(len(batch) * n_elements, latents.shape[1]).index_add(0, group, latents)
        counts = torch.bincount(group, minlength=len(sums)).clamp(min=1)
        rows.append((sums / counts.unsqueeze(-1)).reshape(len(batch), -1).cpu().numpy())
    return np.concatenate(rows)
