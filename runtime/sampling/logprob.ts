/** How likely a token was, and which were likelier. */

export interface TokenLogprob {
  readonly id: number;
  /** Natural logarithm; of the model's distribution before temperature and truncation. */
  readonly logprob: number;
  /** Most likely first; `sampling.logprobs` of them. */
  readonly top: readonly { readonly id: number; readonly logprob: number }[];
}
