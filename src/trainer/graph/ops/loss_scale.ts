// Loss scaling as graph nodes. The state is an input that the run's training programs share and change; the host writes it
// when a run is opened.

import { LOSS_SCALE_STATE, updateLossScale, useLossScale } from "../../../kernels/loss_scale.ts";
import type { Graph, Tensor } from "../graph.ts";

/** Name of the state among a run's inputs. */
export const LOSS_SCALE = "loss_scale";

/** Gives the step its scale, before anything reads the step scalars' one. Returns the state [3] f32. */
export function scaleLoss(g: Graph, step: Tensor): Tensor {
  const state = g.input(LOSS_SCALE, [LOSS_SCALE_STATE], "f32");
  g.add({
    name: "loss_scale_use",
    reads: [state, step],
    writes: [step],
    lower: () => useLossScale({ state, step }),
  });
  return state;
}

/** Moves the scale after the optimizer's norm is known. */
export function learnLossScale(g: Graph, state: Tensor, norm: Tensor): void {
  g.add({
    name: "loss_scale_update",
    reads: [norm, state],
    writes: [state],
    lower: () => updateLossScale({ norm, state }),
  });
}
