// Envelopes of the published fabstir.proto over a js-libp2p stream.
import { fileURLToPath } from 'node:url'
import { lpStream } from '@libp2p/utils'
import protobuf from 'protobufjs'

const PROTO = process.env.FABSTIR_PROTO ??
  fileURLToPath(new URL('../../../nodeapp/wire/fabstir.proto', import.meta.url))
const root = new protobuf.Root().loadSync(PROTO, { keepCase: true })
const Envelope = root.lookupType('fabstir.v1.Envelope')
const Capability = root.lookupType('fabstir.v1.Capability')

export const INFERENCE = '/fabstir/inference/1.0.0'
export const CAPABILITY = '/fabstir/caps/1.0.0'
const MAX_STREAM_FRAME_BYTES = 64 * 1024
const READ_MILLISECONDS = 30_000
const PING_MILLISECONDS = 8_000

export class HostError extends Error {
  constructor ({ code, message, retry_after_ms: retryAfter }) {
    super(message)
    Object.assign(this, { code, retryAfter })
  }
}

export function encode (body) {
  return Envelope.encode(Envelope.fromObject(body)).finish()
}

export function decode (bytes) {
  const made = Envelope.toObject(Envelope.decode(bytes), { longs: Number, defaults: true, oneofs: true })
  return { kind: made.body, ...made[made.body] }
}

// A capability as the DHT keeps it: the message alone.
export function decodeCapability (bytes) {
  return Capability.toObject(Capability.decode(bytes), { defaults: true })
}

export class Link {
  static async open (node, address, protocol) {
    const stream = await node.dialProtocol(address, protocol)
    return new Link(stream)
  }

  constructor (stream) {
    this.stream = stream
    this.frames = lpStream(stream, { maxDataLength: MAX_STREAM_FRAME_BYTES })
  }

  async send (body) {
    await this.frames.write(encode(body))
  }

  // The next message that is not a pong; an error of the host is thrown.
  async receive () {
    const pinger = setInterval(() => {
      this.send({ ping: { nonce: Date.now() } }).catch(() => {})
    }, PING_MILLISECONDS)
    try {
      while (true) {
        const frame = await this.frames.read({ signal: AbortSignal.timeout(READ_MILLISECONDS) })
        const message = decode(frame.subarray())
        if (message.kind === 'error') throw new HostError(message)
        if (message.kind !== 'pong') return message
      }
    } finally {
      clearInterval(pinger)
    }
  }

  async expect (kind) {
    const message = await this.receive()
    if (message.kind !== kind) throw new Error(`${kind} expected, not ${message.kind}`)
    return message
  }

  // Both directions at once: the host sees a renter that is gone.
  drop () {
    this.stream.abort(new Error('dropped'))
  }
}
