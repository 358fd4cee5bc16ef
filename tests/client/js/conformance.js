// The npm openai client against a base URL: each check prints one JSON line, the last one is "done".
import assert from 'node:assert/strict'
import OpenAI from 'openai'

const [baseURL, embeddingModel] = process.argv.slice(2)
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0, timeout: 60_000 })
const model = 'default'
const messages = [{ role: 'user', content: 'What is the capital of France? Answer in one word.' }]
const chat = (more) => client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12, ...more })
const schema = {
  type: 'object',
  properties: { age: { type: 'integer', minimum: 1, maximum: 99 } },
  required: ['age'],
  additionalProperties: false
}
const tools = [{
  type: 'function',
  function: {
    name: 'get_weather',
    parameters: {
      type: 'object',
      properties: { city: { enum: ['Paris', 'Rome'] } },
      required: ['city'],
      additionalProperties: false
    }
  }
}]

const checks = {
  async chat () {
    const answer = await chat()
    assert.match(answer.choices[0].message.content, /Paris/)
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
  },
  async streaming () {
    const whole = (await chat()).choices[0].message.content
    let text = ''
    let usage
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? ''
      usage = chunk.usage ?? usage
    }
    assert.equal(text, whole)
    assert.ok(usage.completion_tokens > 0)
  },
  async runner () {
    const stream = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 12 })
    const final = await stream.finalChatCompletion()
    assert.match(final.choices[0].message.content, /Paris/)
  },
  async schema () {
    const answer = await chat({ max_tokens: 60, response_format: { type: 'json_schema', json_schema: { name: 'p', schema, strict: true } } })
    const { age } = JSON.parse(answer.choices[0].message.content)
    assert.ok(age >= 1 && age <= 99)
  },
  async tools () {
    const answer = await chat({ max_tokens: 60, tools, tool_choice: 'required' })
    const [call] = answer.choices[0].message.tool_calls
    assert.equal(call.function.name, 'get_weather')
    assert.ok(['Paris', 'Rome'].includes(JSON.parse(call.function.arguments).city))
    assert.equal(answer.choices[0].finish_reason, 'tool_calls')
  },
  async streamedTools () {
    const stream = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 60, tools, tool_choice: 'required' })
    const final = await stream.finalChatCompletion()
    assert.equal(final.choices[0].message.tool_calls[0].function.name, 'get_weather')
  },
  async logprobs () {
    const answer = await chat({ logprobs: true, top_logprobs: 2, max_tokens: 3 })
    const entries = answer.choices[0].logprobs.content
    assert.equal(entries.map((entry) => entry.token).join(''), answer.choices[0].message.content)
    assert.ok(entries.every((entry) => entry.top_logprobs.length === 2 && entry.logprob <= 0))
  },
  async completions () {
    const answer = await client.completions.create({ model, prompt: ['One, two,', 'The sky is'], max_tokens: 3 })
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1])
  },
  async responses () {
    const given = { model, input: 'Say hello.', temperature: 0, max_output_tokens: 6 }
    const whole = await client.responses.create(given)
    let text = ''
    let last
    for await (const event of await client.responses.create({ ...given, stream: true })) {
      if (event.type === 'response.output_text.delta') text += event.delta
      last = event
    }
    assert.equal(text, whole.output_text)
    assert.match(last.type, /^response\.(completed|incomplete)$/)
  },
  async models () {
    const names = []
    for await (const entry of client.models.list()) names.push(entry.id)
    assert.ok(names.length >= 2)
  },
  async embeddings () {
    if (!embeddingModel) return
    const { data } = await client.embeddings.create({ model: embeddingModel, input: ['a cat', 'a kitten', 'the tax office'] })
    const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0)
    assert.ok(dot(data[0].embedding, data[1].embedding) > dot(data[0].embedding, data[2].embedding))
  },
  async errors () {
    await assert.rejects(chat({ temperature: 9 }), (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature')
    await assert.rejects(chat({ model: 'gpt-4' }), OpenAI.NotFoundError)
  },
  async abort () {
    const stream = await chat({ stream: true, max_tokens: 300, messages: [{ role: 'user', content: 'Tell a very long story.' }] })
    for await (const chunk of stream) {
      assert.ok(chunk.choices)
      stream.controller.abort()
    }
    assert.match((await chat()).choices[0].message.content, /Paris/)
  }
}

for (const [name, check] of Object.entries(checks)) {
  try {
    await check()
    console.log(JSON.stringify({ name, passed: true }))
  } catch (error) {
    console.log(JSON.stringify({ name, passed: false, error: String(error?.stack ?? error) }))
  }
}
console.log(JSON.stringify({ name: 'done', passed: true }))
