package covey.core.wire

import covey.core.MessageException

/** Items of any list or map in a message. */
const val MAX_ITEMS = 4096

/** What a field holds. A container is only opened where the schema has one, and its length is checked first. */
sealed interface Kind {
    /** A whole number, 64 bits. */
    data object Whole : Kind

    /** A finite number; a whole one is taken for it. */
    data object Real : Kind
    data object Text : Kind
    data object Flag : Kind
    data object Bytes : Kind

    /** Flag, Whole, Real or Text: an argument of a codec's stage. */
    data object Scalar : Kind
    data class ListOf(val item: Kind) : Kind
    data class MapOf(val value: Kind) : Kind
    class Record(val form: () -> Form<*>) : Kind
}

/** A message of the protocol, or a record on this device's disk: one msgpack map, one key a field. */
interface Message {
    /** Its schema. */
    val form: Form<*>

    /** Its fields in the schema's order. */
    fun fields(): List<Any?>

    /** The msgpack form. */
    fun toBytes(): ByteArray = MsgpackWriter().also { write(it, this) }.toByteArray()
}

/** Decoded fields by name; the type that a field has is the schema's. */
class Values(private val values: Map<String, Any?>) {
    /** One field. */
    @Suppress("UNCHECKED_CAST")
    operator fun <T> get(name: String): T = values.getValue(name) as T

    /** A whole number that fits an Int; rounds, versions and counts do, or the message is refused. */
    fun int(name: String): Int {
        val value: Long = get(name)
        requireMessage(value in Int.MIN_VALUE..Int.MAX_VALUE) { "$name is $value, which is beyond what this client counts" }
        return value.toInt()
    }
}

/** The schema of one message: its name, its fields in order, and how it is made of them. */
abstract class Form<M : Message>(val name: String, vararg val fields: Pair<String, Kind>) {
    private val kinds: Map<String, Kind> by lazy { fields.toMap() }

    /** The message; its constructor checks what the schema cannot. */
    protected abstract fun make(v: Values): M

    /** The inverse of `toBytes`; throws [MessageException] for anything else, left-over bytes included. */
    fun fromBytes(data: ByteArray): M {
        val reader = MsgpackReader(data, name)
        val message = read(reader, name)
        requireMessage(reader.left == 0) { "${reader.left} bytes left over after the $name message" }
        return message
    }

    internal fun read(reader: MsgpackReader, where: String): M {
        val count = reader.mapHeader()
        requireMessage(count <= kinds.size) { "$where has $count fields, $name has ${kinds.size}" }
        val values = LinkedHashMap<String, Any?>()
        repeat(count.toInt()) {
            val key = scalar(reader.value(), Kind.Text, "a field name of $where") as String
            val kind = kinds[key]
            requireMessage(kind != null) { "$where has the unknown field '${key.take(40)}'" }
            requireMessage(key !in values) { "$where has the field '$key' twice" }
            values[key] = readKind(reader, kind!!, "$where.$key")
        }
        kinds.keys.firstOrNull { it !in values }?.let { throw MessageException("$where lacks the field '$it'") }
        return make(Values(values))
    }
}

internal inline fun requireMessage(ok: Boolean, sentence: () -> String) {
    if (!ok) throw MessageException(sentence())
}

private fun readKind(reader: MsgpackReader, kind: Kind, where: String): Any? = when (kind) {
    is Kind.Record -> kind.form().read(reader, where)
    is Kind.ListOf -> {
        val count = reader.listHeader()
        requireMessage(count <= MAX_ITEMS) { "$where has $count items, at most $MAX_ITEMS are allowed" }
        List(count.toInt()) { readKind(reader, kind.item, "$where[$it]") }
    }
    is Kind.MapOf -> {
        val count = reader.mapHeader()
        requireMessage(count <= MAX_ITEMS) { "$where has $count entries, at most $MAX_ITEMS are allowed" }
        val out = LinkedHashMap<String, Any?>()
        repeat(count.toInt()) {
            val key = scalar(reader.value(), Kind.Text, "a key of $where") as String
            requireMessage(key !in out) { "$where has the key '${key.take(40)}' twice" }
            out[key] = readKind(reader, kind.value, "$where.${key.take(40)}")
        }
        out
    }
    else -> scalar(reader.value(), kind, where)
}

private fun scalar(value: Any?, kind: Kind, where: String): Any? {
    val fits = when (kind) {
        Kind.Whole -> value is Long
        Kind.Real -> value is Double || value is Long
        Kind.Text -> value is String
        Kind.Flag -> value is Boolean
        Kind.Bytes -> value is ByteArray
        else -> value is Boolean || value is Long || value is Double || value is String
    }
    requireMessage(fits) { "$where is a ${typeName(value)}, expected ${kindName(kind)}" }
    if (kind != Kind.Real) return value
    val real = (value as Number).toDouble()
    requireMessage(real.isFinite()) { "$where is ${if (real.isNaN()) "nan" else "inf"}, expected a finite number" }
    return real
}

private fun typeName(value: Any?): String = when (value) {
    null -> "NoneType"
    is Boolean -> "bool"
    is Long -> "int"
    is Double -> "float"
    is String -> "str"
    else -> "bytes"
}

private fun kindName(kind: Kind): String = when (kind) {
    Kind.Whole -> "int"
    Kind.Real -> "float"
    Kind.Text -> "str"
    Kind.Flag -> "bool"
    Kind.Bytes -> "bytes"
    else -> "one of bool, int, float, str"
}

private fun write(out: MsgpackWriter, message: Message) {
    val fields = message.form.fields
    out.mapHeader(fields.size)
    fields.zip(message.fields()).forEach { (field, value) ->
        out.value(field.first)
        writeValue(out, value)
    }
}

private fun writeValue(out: MsgpackWriter, value: Any?) {
    when (value) {
        is Message -> write(out, value)
        is List<*> -> { out.listHeader(value.size); value.forEach { writeValue(out, it) } }
        is Map<*, *> -> { out.mapHeader(value.size); value.forEach { (k, v) -> out.value(k); writeValue(out, v) } }
        else -> out.value(value)
    }
}
