package covey.app

import android.content.Context
import android.graphics.Canvas
import android.graphics.Paint
import android.graphics.Path
import android.util.AttributeSet
import android.view.View

/** The held-out loss, version by version: a line, its first and last value, nothing else. */
class LossCurveView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    private val density = resources.displayMetrics.density
    private val line = paint(R.color.accent, Paint.Style.STROKE).apply {
        strokeWidth = 3 * density
        strokeCap = Paint.Cap.ROUND
        strokeJoin = Paint.Join.ROUND
    }
    private val dot = paint(R.color.accent, Paint.Style.FILL)
    private val grid = paint(R.color.outline, Paint.Style.STROKE).apply { strokeWidth = density }
    private val words = paint(R.color.ink_soft, Paint.Style.FILL).apply { textSize = 13 * resources.displayMetrics.scaledDensity }
    private val path = Path()

    /** Losses in order; what a screen reader says follows them. */
    var losses: List<Double> = emptyList()
        set(value) {
            if (field == value) return
            field = value
            contentDescription = context.getString(
                R.string.curve_label, value.takeLast(5).joinToString { "%.2f".format(it) }.ifEmpty { context.getString(R.string.none_yet) },
            )
            invalidate()
        }

    override fun onDraw(canvas: Canvas) {
        super.onDraw(canvas)
        val room = words.textSize + 6 * density
        val bottom = height - 4 * density
        canvas.drawLine(0f, bottom, width.toFloat(), bottom, grid)
        if (losses.isEmpty()) {
            canvas.drawText(context.getString(R.string.curve_empty), 0f, height / 2f, words)
            return
        }
        val low = losses.min()
        val span = maxOf(losses.max() - low, 1e-6)
        val inset = 6 * density
        val x = { i: Int -> inset + (width - 2 * inset) * if (losses.size == 1) 0f else i / (losses.size - 1f) }
        val y = { loss: Double -> room + ((1 - (loss - low) / span) * (bottom - room - 2 * inset)).toFloat() + inset }
        path.rewind()
        losses.forEachIndexed { i, loss -> if (i == 0) path.moveTo(x(i), y(loss)) else path.lineTo(x(i), y(loss)) }
        canvas.drawPath(path, line)
        canvas.drawCircle(x(losses.lastIndex), y(losses.last()), 5 * density, dot)
        words.textAlign = Paint.Align.LEFT
        canvas.drawText("%.2f".format(losses.first()), 0f, y(losses.first()) - 10 * density, words)
        if (losses.size > 1) {
            words.textAlign = Paint.Align.RIGHT
            canvas.drawText("%.2f".format(losses.last()), width.toFloat(), y(losses.last()) - 10 * density, words)
            words.textAlign = Paint.Align.LEFT
        }
    }

    private fun paint(color: Int, style: Paint.Style) = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        this.color = context.getColor(color)
        this.style = style
    }
}
