// Uploads in progress: so many at a time, each into a temporary folder of its own, and never so much that the disk runs
// full, which would cost runs their checkpoints and the event log its next entry.

import { statfs } from "node:fs/promises";
import { status } from "@grpc/grpc-js";
import { refusal } from "../rpc/errors.ts";
import type { Limits } from "../settings.ts";
import { discard, type Layout, temporaryDirectory } from "./layout.ts";
import { type Receiver, receiver } from "./upload.ts";

/** The disk is asked once for so many bytes of an upload. */
const ASK_BYTES = 8 * 2 ** 20;

export interface Upload {
  /** Gone when the upload is over, unless it was published. */
  readonly directory: string;
  readonly files: Receiver;
  /** Closes and removes what is left, and makes room for the next. */
  end(): Promise<void>;
}

export interface Intake {
  /** @throws RpcError RESOURCE_EXHAUSTED when too many are in progress */
  begin(): Upload;
}

export function openIntake(
  layout: Layout,
  limits: Pick<Limits, "maxUploads" | "maxUploadBytes" | "minFreeDiskBytes">,
): Intake {
  const { maxUploads, maxUploadBytes, minFreeDiskBytes } = limits;
  let inProgress = 0;

  async function requireRoom(): Promise<void> {
    const { bavail, bsize } = await statfs(layout.tmp);
    if (bavail * bsize - ASK_BYTES >= minFreeDiskBytes) return;
    const message = `the server leaves ${minFreeDiskBytes} bytes of its disk free (--min-free-disk-bytes)`;
    throw refusal(status.RESOURCE_EXHAUSTED, "DISK_FULL", message, { limit: String(minFreeDiskBytes) });
  }

  return {
    begin() {
      if (inProgress >= maxUploads) {
        const message = `${maxUploads} uploads are in progress (--max-uploads)`;
        throw refusal(status.RESOURCE_EXHAUSTED, "TOO_MANY_UPLOADS", message, { limit: String(maxUploads) }, 1);
      }
      inProgress++;
      let granted = 0;
      const directory = temporaryDirectory(layout);
      const files = receiver(directory, maxUploadBytes, async (bytes) => {
        if (bytes > granted) {
          await requireRoom();
          granted = Math.max(ASK_BYTES, bytes);
        }
        granted -= bytes;
      });
      return {
        directory,
        files,
        async end() {
          inProgress--;
          await files.abandon();
          await discard(directory);
        },
      };
    },
  };
}
