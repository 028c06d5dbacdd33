// All pages of a list as one response.

import { create, type DescMessage, type MessageShape } from "@bufbuild/protobuf";

/**
 * Asks for page after page and joins `field`.
 * @param fetch asks for one page; given the fields to spread into its request
 */
export async function allPages<D extends DescMessage, F extends keyof MessageShape<D>>(
  schema: D,
  field: F,
  fetch: (page: { readonly pageSize: number; readonly pageToken: string }) => Promise<MessageShape<D>>,
): Promise<MessageShape<D>> {
  const items: unknown[] = [];
  let pageToken = "";
  do {
    const page = await fetch({ pageSize: 1000, pageToken });
    items.push(...(page[field] as unknown[]));
    pageToken = (page as { readonly nextPageToken?: string }).nextPageToken ?? "";
  } while (pageToken !== "");
  return Object.assign(create(schema), { [field]: items });
}
