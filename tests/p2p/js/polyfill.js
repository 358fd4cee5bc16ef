// Promise.withResolvers for Node 20: js-libp2p asks for Node 22 and uses nothing else of it.
// Import before libp2p.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = function () {
    const deferred = {}
    deferred.promise = new this((resolve, reject) => Object.assign(deferred, { resolve, reject }))
    return deferred
  }
}
