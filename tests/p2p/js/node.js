// A js-libp2p node as our network wants it: TCP, noise, yamux, and our own Kademlia id.
import './polyfill.js'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { createLibp2p } from 'libp2p'

export const KAD = '/fabstir/kad/1.0.0'
const POLL_MILLISECONDS = 20

export function startNode () {
  return createLibp2p({
    // Its own pings would use up the one ping stream that the test may open.
    connectionMonitor: { enabled: false },
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    // The default refuses loopback and private addresses.
    connectionGater: { denyDialMultiaddr: () => false },
    services: {
      identify: identify(),
      ping: ping(),
      dht: kadDHT({
        protocol: KAD,
        clientMode: false,
        peerInfoMapper: passthroughMapper,
        // Whoever reads a record checks it; here the network's answer is what is looked at.
        validators: { fabstir: async () => {} },
        selectors: { fabstir: () => 0 }
      })
    }
  })
}

export async function until (what, condition, seconds = 15) {
  const deadline = Date.now() + seconds * 1000
  while (true) {
    const found = await condition()
    if (found) return found
    if (Date.now() > deadline) throw new Error(`${what}: not within ${seconds} s`)
    await new Promise(resolve => setTimeout(resolve, POLL_MILLISECONDS))
  }
}

// First provider of the key that a query tells, with its addresses.
export async function findProvider (node, cid) {
  for await (const event of node.services.dht.findProviders(cid, { signal: AbortSignal.timeout(10_000) })) {
    if (event.name !== 'PROVIDER' && event.name !== 'PEER_RESPONSE') continue
    for (const provider of event.providers) {
      if (!provider.id.equals(node.peerId) && provider.multiaddrs.length > 0) return provider
    }
  }
  return null
}

export async function getValue (node, key) {
  for await (const event of node.services.dht.get(key, { signal: AbortSignal.timeout(10_000) })) {
    if (event.name === 'VALUE') return event.value
  }
  return null
}

// How many peers took it.
export async function putValue (node, key, value) {
  let taken = 0
  for await (const event of node.services.dht.put(key, value, { signal: AbortSignal.timeout(20_000) })) {
    if (event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE') taken += 1
  }
  return taken
}
