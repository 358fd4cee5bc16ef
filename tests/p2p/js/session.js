// One paid session: log in, open, ask, acknowledge what was received, close.
import { INFERENCE, Link } from './wire.js'
import * as signing from './signing.js'

const RECEIPT_EVERY_TOKENS = 16

export class Session {
  constructor ({ node, address, terms, jobId, privateKey }) {
    Object.assign(this, { node, address, terms, jobId, privateKey })
    this.wallet = signing.addressOf(signing.publicKeyOf(privateKey))
    this.separator = signing.domainSeparator(terms.chainId, terms.marketplace)
    this.runningHash = signing.initialHash(terms.chainId, terms.marketplace, jobId)
    this.ids = []
    this.pieces = []
    this.receipts = 0
  }

  async connect () {
    const link = await Link.open(this.node, this.address, INFERENCE)
    const challenge = await this.greet(link)
    const digest = signing.loginDigest(
      this.separator, this.node.peerId.toString(), this.terms.peerId, challenge
    )
    await link.send({ login: { renter: this.wallet, signature: signing.sign(this.privateKey, digest) } })
    await link.expect('login_accepted')
    await link.send({ open: { job_id: this.jobId } })
    return { link, state: await link.expect('session_state') }
  }

  async greet (link) {
    await link.send({ hello: { min_version: 1, max_version: 1, agent: 'fabstir-js-interop/1' } })
    const welcome = await link.expect('welcome')
    const { chainId, marketplace, wallet } = this.terms
    if (welcome.chain_id !== chainId || welcome.marketplace !== marketplace || welcome.host !== wallet) {
      throw new Error(`host speaks for ${welcome.chain_id} ${welcome.marketplace} ${welcome.host}`)
    }
    return welcome.challenge
  }

  // Receives until the end, or drops the stream as soon as `dropAfter` tokens are there.
  async ask (link, question, { dropAfter = Infinity } = {}) {
    await link.send({ generate: question })
    const started = await link.expect('started')
    if (started.next_token !== this.ids.length) {
      throw new Error(`host goes on at ${started.next_token}, ${this.ids.length} are here`)
    }
    this.limit = started.first_token + started.max_tokens
    let unacknowledged = 0
    while (true) {
      const message = await link.receive()
      if (message.kind === 'end') {
        await this.acknowledge(link)
        return message
      }
      if (message.kind !== 'tokens') throw new Error(`host sent ${message.kind} in an answer`)
      this.take(message)
      unacknowledged += message.ids.length
      if (this.ids.length >= dropAfter) {
        link.drop()
        return null
      }
      if (unacknowledged >= RECEIPT_EVERY_TOKENS) {
        await this.acknowledge(link)
        unacknowledged = 0
      }
    }
  }

  take ({ first_token: first, ids, text }) {
    if (first !== this.ids.length) throw new Error(`tokens from ${first}, ${this.ids.length} are here`)
    if (first + ids.length > this.limit) throw new Error(`more than ${this.limit} tokens`)
    this.ids.push(...ids)
    this.pieces.push(text)
    this.runningHash = signing.extendHash(this.runningHash, ids)
  }

  async acknowledge (link) {
    const tokens = this.ids.length
    const digest = signing.receiptDigest(this.separator, this.jobId, tokens, this.runningHash)
    await link.send({
      receipt: {
        job_id: this.jobId,
        tokens,
        running_hash: this.runningHash,
        signature: signing.sign(this.privateKey, digest)
      }
    })
    this.receipts += 1
  }

  async close (link) {
    await link.send({ close: { job_id: this.jobId } })
    return link.expect('session_state')
  }
}
