using System.CommandLine;
using System.Globalization;
using System.Numerics;

namespace XenLoop.Command;

/// <summary>Makes options that take a number.</summary>
internal static class NumberOption
{
    /// <summary>One whose mistakes are told in words for people.</summary>
    /// <param name="name">With its dashes.</param>
    /// <param name="value">What the help and the man page call the number.</param>
    /// <param name="description">For the help.</param>
    /// <param name="min">The least that it may be.</param>
    /// <param name="max">The most.</param>
    /// <param name="byDefault">Null: 0, which the help does not tell.</param>
    public static Option<T> Create<T>(string name, string value, string description, T min, T max, T? byDefault = null)
        where T : struct, INumber<T>
    {
        Option<T> option = new(name)
        {
            Description = description,
            HelpName = value,
            CustomParser = result =>
            {
                string text = result.Tokens[^1].Value;
                if (!T.TryParse(text, CultureInfo.InvariantCulture, out T number) || !(number >= min && number <= max))
                {
                    result.AddError($"{name} is \"{text}\"; write a number from {min} to {max}");
                }

                return number;
            },
        };
        if (byDefault is { } usual)
        {
            option.DefaultValueFactory = _ => usual;
        }

        return option;
    }
}
