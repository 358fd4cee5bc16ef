// A renter in JavaScript, driven by lines of JSON: one command in, one line of facts out.
//
//   node renter.js < commands > facts
//
// Commands: discover, converse, provide, put, stop. An error is one line { "error": … } and ends it.
import { createInterface } from 'node:readline'
import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { multiaddr } from '@multiformats/multiaddr'
import { decode as decodeCbor } from 'cborg'
import { CID } from 'multiformats/cid'
import { findProvider, getValue, putValue, startNode, until } from './node.js'
import * as signing from './signing.js'
import { Session } from './session.js'
import { CAPABILITY, decodeCapability, HostError, INFERENCE, Link } from './wire.js'

const ECHO = '/fabstir/js-echo/1.0.0'
const hex = (bytes) => Buffer.from(bytes).toString('hex')

// Provider records of some stacks carry the peer id in the address, those of others do not.
function withPeerId ({ id, multiaddrs: [address] }) {
  const isComplete = address.getComponents().some(({ name }) => name === 'p2p')
  return isComplete ? address : address.encapsulate(`/p2p/${id}`)
}

class Renter {
  constructor (node) {
    this.node = node
  }

  // Bootstrap -> provider record -> host -> identify, ping, signed capability record.
  async discover ({ bootstrap, provider_key: key }) {
    await this.node.dial(multiaddr(bootstrap))
    await until('bootstrap in the routing table', () => this.node.services.dht.routingTable.size > 0)
    const found = await until('a provider', () => findProvider(this.node, CID.parse(key)), 30)
    this.host = found.id
    this.address = withPeerId(found)
    await this.node.dial(this.address)
    const peer = await until('identify', async () => {
      const known = await this.node.peerStore.get(found.id)
      return known.metadata.has('AgentVersion') && known
    })
    const milliseconds = await this.node.services.ping.ping(this.address)
    return {
      peer_id: found.id.toString(),
      address: this.address.toString(),
      protocols: peer.protocols,
      agent: new TextDecoder().decode(peer.metadata.get('AgentVersion')),
      ping_ms: milliseconds,
      ...await this.capability()
    }
  }

  async capability () {
    const link = await Link.open(this.node, this.address, CAPABILITY)
    await link.send({ capability_request: {} })
    const { record, signature, peer_signature: peerSignature } = await link.expect('capability')
    await link.stream.close()
    const told = await this.check(record, signature, peerSignature)
    this.terms = {
      chainId: told.chain_id,
      marketplace: told.marketplace,
      wallet: told.wallet,
      peerId: told.peer_id
    }
    return { record: hex(record), signer: told.wallet, published: await this.published(told) }
  }

  // The same record as the DHT keeps it, without asking the host.
  async published ({ peer_id: peerId }) {
    const key = signing.capabilityKey(peerId)
    const value = await until('a published record', () => getValue(this.node, key), 30)
    const { record, signature, peer_signature: peerSignature } = decodeCapability(value)
    await this.check(record, signature, peerSignature)
    return hex(value)
  }

  // Puts a value into the DHT from here.
  async put ({ key, value }) {
    return { taken: await putValue(this.node, new TextEncoder().encode(key), Buffer.from(value, 'hex')) }
  }

  async check (record, signature, peerSignature) {
    const told = decodeCbor(record)
    const separator = signing.domainSeparator(told.chain_id, told.marketplace)
    const signer = signing.signerOf(signing.capabilityDigest(separator, record), signature)
    if (signer !== told.wallet || signing.addressOf(told.public_key) !== told.wallet) {
      throw new Error(`record of ${told.wallet} is signed by ${signer}`)
    }
    if (told.peer_id !== this.host.toString()) throw new Error(`record names peer ${told.peer_id}`)
    if (!await signing.isSignedByPeer(told.peer_id, record, peerSignature)) {
      throw new Error(`record is not signed by peer ${told.peer_id}`)
    }
    return told
  }

  // A whole paid answer, with the stream dropped in the middle and taken up again.
  async converse ({ job_id: jobId, key_file: keyFile, model_id: modelId, prompt, max_tokens: maxTokens, drop_after: dropAfter }) {
    const privateKey = Buffer.from(readFileSync(keyFile, 'utf8').trim(), 'hex')
    const session = new Session({
      node: this.node, address: this.address, terms: this.terms, jobId, privateKey
    })
    const question = {
      request_id: hex(randomBytes(16)),
      model_id: modelId,
      messages: [{ role: 'user', content: prompt }],
      max_tokens: maxTokens,
      sampling: { temperature: 0 }
    }
    const refusals = await this.refusals(session, question)
    const first = await session.connect()
    await session.ask(first.link, question, { dropAfter })
    const received = session.ids.length
    const { link, state } = await this.reconnect(session)
    await session.acknowledge(link)
    const end = await session.ask(link, question)
    const closed = await session.close(link)
    link.drop()
    return {
      wallet: session.wallet,
      refusals,
      affordable: first.state.affordable,
      open_request: state.open_request === question.request_id,
      received_before_drop: received,
      ids: session.ids,
      text: session.pieces.join(''),
      finish_reason: end.finish_reason,
      prompt_tokens: end.prompt_tokens,
      completion_tokens: end.completion_tokens,
      receipts: session.receipts,
      running_hash: hex(session.runningHash),
      phase: closed.phase,
      acknowledged: closed.acknowledged,
      acknowledged_hash: hex(closed.running_hash)
    }
  }

  // The host may still be giving up the dropped stream: it says when to come back.
  async reconnect (session) {
    return until('a second stream', async () => {
      try {
        return await session.connect()
      } catch (error) {
        if (!(error instanceof HostError) || error.code !== 'busy') throw error
        return null
      }
    })
  }

  // What an implementer gets wrong first: the host names it by code.
  async refusals (session, question) {
    const codeOf = async (attempt) => {
      const link = await Link.open(this.node, this.address, INFERENCE)
      try {
        await attempt(link)
        return 'none'
      } catch (error) {
        if (!(error instanceof HostError)) throw error
        return error.code
      } finally {
        link.drop()
      }
    }
    const signature = new Uint8Array(65).fill(1)
    return {
      forged_login: await codeOf(async (link) => {
        await session.greet(link)
        await link.send({ login: { renter: session.wallet, signature } })
        await link.expect('login_accepted')
      }),
      no_hello: await codeOf(async (link) => {
        await link.send({ generate: question })
        await link.receive()
      }),
      unknown_protocol: await Link.open(this.node, this.address, '/fabstir/inference/9.0.0')
        .then(() => 'none', (error) => error.name)
    }
  }

  // Announces this node, so that a Python host can find and reach it.
  async provide ({ provider_key: key }) {
    await this.node.handle(ECHO, (stream) => {
      stream.addEventListener('message', (event) => stream.send(event.data))
      stream.addEventListener('remoteCloseWrite', () => stream.close())
    })
    const cid = CID.parse(key)
    let taken = 0
    for await (const event of this.node.services.dht.provide(cid)) {
      if (event.name === 'PEER_RESPONSE') taken += 1
    }
    return {
      peer_id: this.node.peerId.toString(),
      addresses: this.node.getMultiaddrs().map(String),
      protocols: this.node.getProtocols(),
      taken
    }
  }
}

async function main () {
  const node = await startNode()
  const renter = new Renter(node)
  const tell = (facts) => process.stdout.write(JSON.stringify(facts) + '\n')
  try {
    for await (const line of createInterface({ input: process.stdin })) {
      const { command, ...rest } = JSON.parse(line)
      if (command === 'stop') break
      tell(await renter[command](rest))
    }
  } catch (error) {
    tell({ error: `${error.name}: ${error.message}`, code: error.code, stack: error.stack })
    process.exitCode = 1
  } finally {
    await node.stop()
  }
}

await main()
