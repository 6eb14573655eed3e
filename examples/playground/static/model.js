"use strict";
// A GPT and its tokenizer, from the weights inside this page: all that is needed to write text. No libraries.
//
// The names are those of gpt/model.py, of which this is the forward pass. One token is read at a time, so everything is
// a vector: C channels, or C / n_head of them in a head. The keys and values of earlier tokens are kept in a cache.

/** The parameters by name: Float32Array, from the float16 numbers that the page holds as base64. */
function readWeights(base64, shapes) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const halves = new DataView(bytes.buffer);
  const weights = {};
  let offset = 0;
  for (const [name, shape] of shapes) {
    const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
    for (let i = 0; i < values.length; i += 1, offset += 2) values[i] = fromHalf(halves.getUint16(offset, true));
    weights[name] = values;
  }
  return weights;
}

/** A number from the 16 bits of a float16: sign, 5 bits of exponent, 10 bits of fraction. */
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// Vectors

function add(x, y) {
  return x.map((value, i) => value + y[i]);
}

/** The linear layer y = W x + b; W is (outputs, inputs), row by row. Without b there is no bias. */
function linear(x, W, b) {
  const y = new Float32Array(W.length / x.length);
  for (let o = 0, start = 0; o < y.length; o += 1, start += x.length) {
    let sum = b ? b[o] : 0;
    for (let i = 0; i < x.length; i += 1) sum += W[start + i] * x[i];
    y[o] = sum;
  }
  return y;
}

function mean(x) {
  let sum = 0;
  for (const value of x) sum += value;
  return sum / x.length;
}

function layerNorm(x, gamma, beta) {
  const mu = mean(x);
  const r = 1 / Math.sqrt(mean(x.map((value) => (value - mu) ** 2)) + 1e-5);
  return x.map((value, i) => (value - mu) * r * gamma[i] + (beta ? beta[i] : 0));
}

function rmsNorm(x, gamma) {
  const r = 1 / Math.sqrt(mean(x.map((value) => value * value)) + 1e-5);
  return x.map((value, i) => value * r * (gamma ? gamma[i] : 1));
}

function gelu(x) {
  return (x / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

function squaredRelu(x) {
  return Math.max(x, 0) ** 2;
}

/** Rotate the pairs of channels i and i + D/2 by the angle position 10000^(-2i/D). */
function rotary(x, position) {
  const half = x.length / 2;
  const y = new Float32Array(x.length);
  for (let i = 0; i < half; i += 1) {
    const angle = position * 10000 ** (-i / half);
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    y[i] = x[i] * cos - x[half + i] * sin;
    y[half + i] = x[half + i] * cos + x[i] * sin;
  }
  return y;
}

// The model

class GPT {
  constructor(config, weights) {
    this.config = config;
    this.weights = weights;
    this.forget();
  }

  forget() {
    this.read = []; // the tokens whose keys and values are in the cache
    this.cache = Array.from({ length: this.config.n_layer }, () => ({ keys: [], values: [] }));
  }

  parameter(name) { return this.weights[name]; }

  /** Logits for the token after the last of these, of which the model sees the last block_size. */
  nextLogits(ids) {
    const seen = ids.slice(-this.config.block_size);
    if (this.read.length >= seen.length || this.read.some((token, i) => token !== seen[i])) this.forget();
    let x;
    for (const token of seen.slice(this.read.length)) x = this.hiddenState(token);
    const logits = linear(x, this.parameter("lm_head.weight") ?? this.parameter("wte.weight"));
    const bound = this.config.logit_softcap;
    return bound ? logits.map((logit) => bound * Math.tanh(logit / bound)) : logits;
  }

  /** Read one more token: the output of the last norm, (C). */
  hiddenState(token) {
    const C = this.config.n_embd;
    const row = (name, i) => this.parameter(name).slice(i * C, (i + 1) * C);
    const position = this.read.length;
    let x = row("wte.weight", token);
    if (this.config.position === "learned") x = add(x, row("wpe.weight", position));
    for (let i = 0; i < this.config.n_layer; i += 1) {
      x = add(x, this.attention(i, this.norm(`h.${i}.ln_1`, x), position));
      x = add(x, this.mlp(i, this.norm(`h.${i}.ln_2`, x)));
    }
    this.read.push(token);
    return this.norm("ln_f", x);
  }

  norm(name, x) {
    const gamma = this.parameter(`${name}.weight`);
    return this.config.norm === "rms" ? rmsNorm(x, gamma) : layerNorm(x, gamma, this.parameter(`${name}.bias`));
  }

  linear(name, x) {
    return linear(x, this.parameter(`${name}.weight`), this.parameter(`${name}.bias`));
  }

  /** The token's query meets the keys of all tokens so far; it collects their values. */
  attention(layer, x, position) {
    const { n_head: heads, n_embd: C } = this.config;
    const size = C / heads;
    const qkv = this.linear(`h.${layer}.attn.c_attn`, x);
    const { keys, values } = this.cache[layer];
    const collected = new Float32Array(C);
    const [k, v] = [new Float32Array(C), qkv.slice(2 * C)];
    keys.push(k);
    values.push(v);
    for (let start = 0; start < C; start += size) {
      const q = this.placed(qkv.slice(start, start + size), position);
      k.set(this.placed(qkv.slice(C + start, C + start + size), position), start);
      const scores = keys.map((key) => {
        let score = 0;
        for (let i = 0; i < size; i += 1) score += q[i] * key[start + i];
        return score / Math.sqrt(size);
      });
      const largest = Math.max(...scores);
      const p = softmax(scores.map((score) => score - largest));
      values.forEach((value, t) => {
        for (let i = start; i < start + size; i += 1) collected[i] += p[t] * value[i];
      });
    }
    return this.linear(`h.${layer}.attn.c_proj`, collected);
  }

  /** A query or a key of one head, normalized and turned by its position, if the model does so. */
  placed(x, position) {
    const normalized = this.config.qk_norm ? rmsNorm(x) : x;
    return this.config.position === "rotary" ? rotary(normalized, position) : normalized;
  }

  mlp(layer, x) {
    const activation = this.config.activation === "relu2" ? squaredRelu : gelu;
    return this.linear(`h.${layer}.mlp.c_proj`, this.linear(`h.${layer}.mlp.c_fc`, x).map(activation));
  }
}

// Tokenizers

/** Every character is a token. */
class CharTokenizer {
  constructor({ characters }) {
    this.characters = [...characters];
    this.ids = new Map(this.characters.map((character, id) => [character, id]));
  }

  encode(text) {
    return [...text].map((character) => {
      const id = this.ids.get(character);
      if (id === undefined) throw new Error(`the character “${character}” is not in the model's vocabulary`);
      return id;
    });
  }

  bytes(id) { return new TextEncoder().encode(this.characters[id]); }
}

const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const PIECES = new RegExp(
  `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]`, "gu");

/** Byte pairs, as in GPT-2: in each piece of the text, the pair that makes the lowest token is merged first. */
class BytePairTokenizer {
  constructor({ tokens }) {
    this.tokens = tokens.map(atob); // a character for each byte
    this.ids = new Map(this.tokens.map((token, id) => [token, id]));
  }

  encode(text) {
    return [...text.matchAll(PIECES)].flatMap(([piece]) => this.merged(piece));
  }

  merged(piece) {
    const bytes = String.fromCharCode(...new TextEncoder().encode(piece));
    if (this.ids.has(bytes)) return [this.ids.get(bytes)];
    const parts = [...bytes];
    for (;;) {
      let [lowest, place] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i += 1) {
        const id = this.ids.get(parts[i] + parts[i + 1]) ?? Infinity;
        if (id < lowest) [lowest, place] = [id, i];
      }
      if (place < 0) return parts.map((part) => this.ids.get(part));
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
  }

  bytes(id) { return Uint8Array.from(this.tokens[id], (c) => c.charCodeAt(0)); }
}

// Drawing lots

/** Random numbers from 0 to 1 from a seed (mulberry32). They are not Python's, so sampled texts differ from it. */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** A token, drawn with these probabilities. */
function drawToken(p, random) {
  let left = random();
  const drawn = p.findIndex((chance) => (left -= chance) < 0);
  return drawn >= 0 ? drawn : p.findLastIndex((chance) => chance > 0); // the rest of rounding
}
