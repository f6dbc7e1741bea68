package covey.core.client

import covey.core.CodecException
import covey.core.LayoutException
import covey.core.MessageException
import covey.core.codec.codecFromSpec
import covey.core.model.Layout
import covey.core.model.vectorDigest
import covey.core.wire.Adapter

/** The version number of a device that holds none. */
const val NOTHING = -1

/** The version that this device has, bit for bit what the server published. */
class Held(val version: Int, val adapter: FloatArray)

/**
 * The version that a message leads to, with its digest checked. [start] makes version 0 from the task's seed. Throws
 * [LayoutException] for another layout and [MessageException] when the message does not lead to what it states.
 */
fun advance(held: Held, message: Adapter, layout: Layout, start: () -> FloatArray): Held {
    if (message.layout != layout.digest) {
        throw LayoutException(
            "the server sends an adapter for layout ${message.layout.take(12)}, this bundle has ${layout.digest.take(12)}: " +
                "the server runs another task than it announced",
        )
    }
    val adapter = when (message.base) {
        NOTHING -> FloatArray(layout.size)
        held.version -> held.adapter.copyOf()
        0 -> start()
        else -> throw MessageException("the server sends a change to version ${message.base}, this device holds version ${held.version}")
    }
    for (step in message.steps) {
        try {
            codecFromSpec(step.codec, layout).decode(step.parts).addTo(adapter)
        } catch (error: CodecException) {
            throw MessageException("version ${step.version} of the adapter cannot be decoded here: ${error.sentence}")
        }
    }
    if (vectorDigest(adapter) != message.digest) {
        throw MessageException(
            "version ${message.version} of the adapter, built from version ${message.base} and ${message.steps.size} " +
                "steps, does not have the digest that the server states",
        )
    }
    return Held(message.version, adapter)
}
